"""torch.compile and AOTInductor through the torch_cuda backend, on the CPU.

Outside the usual test paths, because a CPU takes minutes to compile what a GPU compiles sooner:
`pytest tests/extra/test_torch_compilers.py`; it needs a C++ compiler.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engines_fixtures import write_tiny_torch_folder

from engines.errors import BackendError, BundleError
from engines.pipeline import Pipeline
from engines.runtime.base import RuntimeOptions
from engines.runtime.packages import PackageList
from engines.runtime.registry import load_stages
from engines.runtime.torch_cuda import compile_packages
from engines.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own
ON_CPU = RuntimeOptions(num_threads=1, device="cpu", batch_sizes=(2, 4))
PACKAGED = RuntimeOptions(num_threads=1, device="cpu", batch_sizes=(2, 4), compiler="package")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its three packages."""
    folder = tmp_path_factory.mktemp("packaged") / "torch"
    write_tiny_torch_folder(folder)
    compile_packages(folder, ON_CPU)
    return folder


def test_a_compiled_stage_gives_what_the_module_gives(folder: Path) -> None:
    """The text stage alone, as the quickest."""
    spec = ModelSpec.load(folder)
    tokens = np.ones((2, 12), dtype=np.int64)
    (expected,) = load_stages("torch_cuda", folder, spec, ON_CPU).text(tokens)
    options = RuntimeOptions(num_threads=1, device="cpu", batch_sizes=(2,), compiler="compile")
    compiled = load_stages("torch_cuda", folder, spec, options)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (embeds,) = compiled.text(tokens)
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_packages_draw_what_the_modules_draw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Pipeline.load(folder, backend="torch", num_threads=1)
    prompts, seeds = ["a", "b", "c"], [1, 2, 3]
    expected = reference.generate(prompts, seeds, width=64, height=64, steps=2).images_BHWC
    monkeypatch.setattr("engines.runtime.torch_cuda.load_modules", None)  # weights are in them
    packaged = Pipeline.load(folder, backend="torch_cuda", options=PACKAGED)
    for num in (1, 3):
        drawn = packaged.generate(prompts[:num], seeds[:num], width=64, height=64, steps=2)
        difference = np.abs(drawn.images_BHWC.astype(int) - expected[:num])
        assert difference.max() <= 2


def test_what_is_listed_and_whole_is_not_compiled_again(folder: Path) -> None:
    paths = [folder / "packages" / r.file for r in PackageList.load(folder / "packages").packages]
    before = [path.stat().st_mtime_ns for path in paths]
    assert sorted(compile_packages(folder, ON_CPU)) == sorted(paths)
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert len(list((folder / "packages").iterdir())) == 4


def test_a_package_that_is_not_this_very_one_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spec = ModelSpec.load(copy)
    (package,) = (copy / "packages").glob("decode-*.pt2")
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    with pytest.raises(BundleError, match=f"{package} is missing or damaged"):
        load_stages("torch_cuda", copy, spec, PACKAGED)
    config = copy / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(BackendError, match="no float32 package of the decode stage for cpu-"):
        load_stages("torch_cuda", copy, spec, PACKAGED)
    (copy / "packages" / "packages.json").write_text("{")
    with pytest.raises(BundleError, match=r"packages.json is damaged: delete it and compile"):
        load_stages("torch_cuda", copy, spec, PACKAGED)
