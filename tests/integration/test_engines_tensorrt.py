"""The tensorrt backend: plans over torch's memory, by a double of the package on the CPU.

The real package refuses to run anything without a GPU; what it says then is tested at the end.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_double
import torch
from graph_fixtures import write_graph_bundle

from engines.errors import BackendError, DamagedPlanError, OutOfMemoryError, PlanError
from engines.pipeline import Pipeline
from engines.plans import EngineList, EngineRecord
from engines.profiles import BatchRange, EngineKey, Platform, engine_key, stage_graphs
from engines.runtime.base import RuntimeOptions, Stages
from engines.runtime.caches import read_cache, write_cache
from engines.runtime.devices import CpuDevice
from engines.runtime.execution import OpenPlans
from engines.runtime.registry import load_stages
from engines.runtime.tensorrt import import_package, load_plans
from engines.spec import ModelSpec, Precision, StageFile, StageName, sha256_of
from engines.tokenizer import Tokenizer

HERE = Platform(package="tensorrt_rtx", package_version="1.7.1", compute_capability="SM89")
PROMPTS = ["a red circle", "b", "", "c c c", "a"]
SEEDS = [7, 1, 2, 3, 4]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    write_graph_bundle(folder)
    return folder


def _build(
    bundle: Path, *ranges: str, platform: Platform = HERE, precision: Precision | None = None
) -> list[EngineRecord]:
    """Write and list the double's plans, one per stage and batch range."""
    spec = ModelSpec.load(bundle)
    folder = bundle / "engines"
    folder.mkdir(exist_ok=True)
    listed = EngineList.load(folder)
    for batch in map(BatchRange.parse, ranges):
        for graph in stage_graphs(bundle, spec, precision):
            path = folder / f"{graph.path.stem}-b{batch.min}-{batch.max}.plan"
            limits = f"{batch.min}:{batch.max}\n".encode()
            path.write_bytes(limits + graph.path.read_bytes())
            key = engine_key(graph, spec.sizes_px, platform, batch)
            listed = listed.having(_record(path, key, graph.path.name))
    listed.save(folder)
    return list(listed.engines)


def _record(path: Path, key: EngineKey, graph_file: str) -> EngineRecord:
    return EngineRecord(
        file=path.name,
        graph_file=graph_file,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        fingerprint=key.fingerprint,
        key=key,
        made_by="compile",
        build_s=0.0,
    )


def _load(bundle: Path, platform: Platform = HERE, **options: Any) -> Stages:
    model = (bundle, ModelSpec.load(bundle), RuntimeOptions(**options))
    return load_plans(tensorrt_double, CpuDevice(), platform, model)


def _pipeline(bundle: Path, **options: Any) -> Pipeline:
    spec = ModelSpec.load(bundle)
    return Pipeline(spec, Tokenizer.load(bundle, spec), _load(bundle, **options))


@pytest.mark.parametrize("steps", [1, 4])
def test_plans_draw_what_the_graphs_draw(bundle: Path, steps: int) -> None:
    _build(bundle, "1", "2", "4")
    tested = _pipeline(bundle)
    reference = Pipeline.load(bundle, num_threads=1)
    for num in (1, 2, 3, 5):  # alone, full, padded, and in two parts
        batch = PROMPTS[:num], SEEDS[:num]
        expected = reference.generate(*batch, width=64, height=64, steps=steps).images_BHWC
        for _ in range(2):
            drawn = tested.generate(*batch, width=64, height=64, steps=steps).images_BHWC
            # numpy's and torch's own rounding between steps; the graphs are the same.
            assert np.abs(drawn.astype(int) - expected).max() <= 1
        assert len({picture.tobytes() for picture in drawn}) == num
    assert tested.row_counts() == (2 * (1 + 2 + 3 + 5), 2)


def test_a_plan_takes_the_place_of_each_batch_size(bundle: Path) -> None:
    _build(bundle, "1", "2:4:8")
    assert _load(bundle).batch_sizes == (1, 2, 4, 8)
    assert _load(bundle, batch_sizes=(3, 8)).batch_sizes == (3, 8)
    with pytest.raises(BackendError, match=r"batch of 9, only 1, 2:4:8: .*build --batch 9`"):
        _load(bundle, batch_sizes=(9,))


def test_the_narrowest_plan_is_preferred(bundle: Path) -> None:
    _build(bundle, "1:4:16", "4")
    # The static plans alone are readable now: were the wide ones used for 4, this would fail.
    for path in (bundle / "engines").glob("*-b1-16.plan"):
        path.write_bytes(b"damaged")
    assert _load(bundle, batch_sizes=(4,)).batch_sizes == (4,)
    with pytest.raises(DamagedPlanError, match=r"b1-16.plan is damaged.*engines build"):
        _load(bundle, batch_sizes=(8,))


def test_a_plan_that_differs_from_its_list_is_never_read(bundle: Path) -> None:
    (record, *_) = _build(bundle, "1")
    path = bundle / "engines" / record.file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedPlanError, match=f"{path} is damaged .* set aside as {path.name}"):
        _load(bundle)
    with pytest.raises(PlanError, match=f"{path} is listed and missing"):
        _load(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"package": "tensorrt"}, "another package .tensorrt_rtx; wanted tensorrt"),
        ({"package_version": "1.8"}, "another tensorrt_rtx version .1.7.1; wanted 1.8"),
        ({"compute_capability": "SM120"}, "another compute capability .SM89; wanted SM120"),
    ],
    ids=["package", "version", "gpu"],
)
def test_plans_of_another_machine_are_refused_with_the_remedy(
    bundle: Path, change: dict[str, str], words: str
) -> None:
    _build(bundle, "1", "4")
    with pytest.raises(PlanError, match=rf"text plans for {words}.*onestep-engines build"):
        _load(bundle, HERE.model_copy(update=change))


def test_plans_of_an_older_export_are_refused(bundle: Path) -> None:
    _build(bundle, "1")
    write_graph_bundle(bundle, scale=2.0)
    with pytest.raises(PlanError, match="holds decode plans for another graph"):
        _load(bundle)
    spec = write_graph_bundle(bundle)
    spec.model_copy(update={"sizes_px": ((128, 64),)}).save(bundle)
    with pytest.raises(PlanError, match="holds text plans for another set of sizes"):
        _load(bundle)


def test_a_stage_without_a_plan_is_named(bundle: Path) -> None:
    records = _build(bundle, "4", "8")
    by_name = {record.file: record for record in records}
    del by_name["decode-b4-4.plan"]
    EngineList(engines=tuple(by_name.values())).save(bundle / "engines")
    assert _load(bundle).batch_sizes == (8,)  # what all stages have
    del by_name["denoise-b8-8.plan"]
    EngineList(engines=tuple(by_name.values())).save(bundle / "engines")
    with pytest.raises(PlanError, match=r"decode plans for batch 8 and none for 4.*--batch 4"):
        _load(bundle)
    del by_name["decode-b8-8.plan"]
    EngineList(engines=tuple(by_name.values())).save(bundle / "engines")
    with pytest.raises(PlanError, match="lists no plan of the decode stage"):
        _load(bundle)


def test_each_precision_has_plans_of_its_own(bundle: Path) -> None:
    """The variant's decode graph is another; its other stages are the base's."""
    other = bundle.parent / "other"
    write_graph_bundle(other, scale=3.0)
    path = bundle / "decode.float16.onnx"
    path.write_bytes((other / "decode.onnx").read_bytes())
    file = StageFile(file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)
    variants: dict[Precision, dict[StageName, StageFile]] = {"float16": {"decode": file}}
    ModelSpec.load(bundle).model_copy(update={"variants": variants}).save(bundle)
    _build(bundle, "1")
    with pytest.raises(PlanError, match="holds decode plans for another graph"):
        _load(bundle, precision="float16")
    _build(bundle, "1", precision="float16")
    latents_BChw = torch.randn(1, 8, 8, 8)
    (base,) = _load(bundle).decode(latents_BChw)
    (variant,) = _load(bundle, precision="float16").decode(latents_BChw)
    _build(other, "1")
    (expected,) = _load(other).decode(latents_BChw)
    assert torch.equal(variant, expected)
    assert not torch.equal(base, expected)


def test_what_the_package_cannot_read_is_told_in_its_own_first_words(bundle: Path) -> None:
    records = _build(bundle, "1")
    path = bundle / "engines" / records[0].file
    path.write_bytes(b"1:1\nno graph")
    record = _record(path, records[0].key, records[0].graph_file)
    EngineList(engines=(record, *records[1:])).save(bundle / "engines")
    words = r"is refused by .*cannot read the plan.*: delete it and run"
    with pytest.raises(BackendError, match=words) as caught:
        _load(bundle)
    assert "\n" not in str(caught.value)
    assert "second complaint" not in str(caught.value)


def test_a_shape_that_a_plan_was_not_built_for_is_refused(bundle: Path) -> None:
    _build(bundle, "1", "2")
    stages = _load(bundle)
    with pytest.raises(BackendError, match="the decode stage has plans for batches of 1, 2, not 3"):
        stages.decode(torch.zeros(3, 8, 8, 8))
    with pytest.raises(BackendError, match=r"takes no latents_BChw of shape \(1, 8, 4, 4\)"):
        stages.decode(torch.zeros(1, 8, 4, 4))


def test_any_layout_and_type_of_tensor_is_laid_out_as_the_plan_reads_it(bundle: Path) -> None:
    _build(bundle, "2")
    decode = _load(bundle).decode
    latents_BChw = torch.randn(2, 8, 8, 8)
    (expected,) = decode(latents_BChw)
    strided_BSChw = torch.stack([latents_BChw, torch.zeros_like(latents_BChw)], dim=1)
    for same in (
        strided_BSChw[:, 0],
        latents_BChw.to(memory_format=torch.channels_last),
        latents_BChw.double(),
    ):
        (drawn,) = decode(same)
        assert torch.equal(drawn, expected)


def test_a_run_that_fails_for_memory_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(bundle, "1")
    decode = _load(bundle).decode

    def fail(words: str) -> None:
        def execute(self: Any, stream_handle: int) -> bool:
            self._engine._logger.log(tensorrt_double.ILogger.ERROR, words)
            return False

        monkeypatch.setattr(tensorrt_double.IExecutionContext, "execute_async_v3", execute)

    fail("Error Code 2: OutOfMemory (CUDA error 2: out of memory)")
    with pytest.raises(OutOfMemoryError, match=r"decode-b1-1.plan failed: Error Code 2"):
        decode(torch.zeros(1, 8, 8, 8))
    fail("Error Code 1: Cuda Driver")
    with pytest.raises(BackendError, match="Error Code 1") as caught:
        decode(torch.zeros(1, 8, 8, 8))
    assert not isinstance(caught.value, OutOfMemoryError)


def test_what_was_compiled_for_the_gpu_is_kept_beside_the_plans(bundle: Path) -> None:
    _build(bundle, "1")
    caches = [bundle / "engines" / f"{s}-b1-1.cache" for s in ("text", "denoise", "decode")]

    def draw() -> None:
        _pipeline(bundle).generate(["a"], [1], width=64, height=64, steps=1)

    draw()
    written = [path.stat().st_mtime_ns for path in caches]
    draw()  # taken up again, unchanged
    assert [path.stat().st_mtime_ns for path in caches] == written
    caches[0].write_bytes(b"damaged")
    draw()
    assert caches[0].read_bytes().endswith(b"compiled")
    assert not list((bundle / "engines").glob("*.partial"))


def test_a_cache_that_was_altered_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "text.cache"
    write_cache(path, b"compiled for a GPU")
    assert read_cache(path) == b"compiled for a GPU"
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)
    assert read_cache(path) is None
    assert read_cache(tmp_path / "none.cache") is None


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _build(bundle, "1")
    (bundle / "engines" / "text-b1-1.cache").mkdir()
    with caplog.at_level(logging.WARNING):
        _pipeline(bundle).generate(["a"], [1], width=64, height=64, steps=1)
    assert [record.message for record in caplog.records] == ["runtime_cache_not_kept"]


def test_a_package_without_a_runtime_cache_needs_none(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tensorrt_double.IRuntimeConfig, "create_runtime_cache")
    _build(bundle, "1")
    _pipeline(bundle).generate(["a"], [1], width=64, height=64, steps=1)
    assert not list((bundle / "engines").glob("*.cache"))


def test_a_folder_without_plans_says_how_to_build_them(bundle: Path) -> None:
    with pytest.raises(BackendError, match=f"{bundle}/engines lists no plans.*engines build"):
        load_stages("tensorrt", bundle, ModelSpec.load(bundle))


def test_the_installed_package_is_found_and_a_missing_one_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = type(sys)("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", other)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt_double)
    assert import_package(("tensorrt",)) is other
    assert import_package(("tensorrt_rtx",)) is tensorrt_double
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert import_package(("tensorrt_rtx",)) is other
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"needs TensorRT: pip install 'onestep\[tensorrt\]'"):
        import_package(("tensorrt_rtx",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_backend_says_so_in_one_line(bundle: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _build(bundle, "1", platform=HERE.model_copy(update={"package_version": trt.__version__}))
    with pytest.raises(BackendError, match=r"built without CUDA|no GPU 0 here") as caught:
        Pipeline.load(bundle, backend="tensorrt")
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="tensorrt_rtx needs a GPU: leave the device out"):
        Pipeline.load(bundle, backend="tensorrt", options=RuntimeOptions(device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_real_runtime_refuses_in_words_that_reach_the_user(bundle: Path) -> None:
    """The one part of the real package that runs without a GPU: it opens, and reads headers."""
    trt = pytest.importorskip("tensorrt_rtx")
    from engines.build import Target, build_engines

    target = Target("tensorrt_rtx", "SM89", (BatchRange.of(1),))
    (record, *_) = build_engines(bundle, bundle / "engines", target)
    path = bundle / "engines" / record.file
    plan = path.read_bytes()
    opened = OpenPlans(trt, CpuDevice())
    for content, words in (
        (plan, "CUDA driver version is insufficient"),
        (plan[:5000], "Serialization assertion plan.header.size == blobSize failed"),
        (b"nonsense" * 100, "engine created with incompatible serialization version"),
    ):
        with pytest.raises(BackendError, match="is refused by tensorrt_rtx") as caught:
            opened.deserialise(path, content)
        text = str(caught.value)
        assert words in text
        assert text.startswith(f"{path} ")
        assert text.endswith("delete it and run `onestep-engines build`")
        assert "\n" not in text
    # What a real build listed is what the backend finds, down to the package's own refusal.
    model = (bundle, ModelSpec.load(bundle), RuntimeOptions())
    with pytest.raises(BackendError, match=f"{path} is refused .*CUDA driver version"):
        load_plans(trt, CpuDevice(), record.key.platform, model)
