"""One contract for every backend, parity between them, and damaged bundles."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.__main__ import main
from engines.check import check_bundle, configurations
from engines.errors import BackendError, BundleError, ParityError
from engines.export import ExportOptions, export_bundle
from engines.pipeline import Pipeline
from engines.runtime.base import RuntimeOptions, Stage, Stages
from engines.runtime.registry import load_stages
from engines.spec import Configuration, ModelSpec, sha256_of
from engines.verdicts import Verdicts

SIZE_PX = 64


# Those that run without a GPU or a package beyond the tests' own.
OPTIONS = {
    "onnx": RuntimeOptions(num_threads=1),
    "openvino": RuntimeOptions(num_threads=1),
    "torch": RuntimeOptions(num_threads=1),
    "torch_cuda": RuntimeOptions(num_threads=1, device="cpu"),
}
ONNX = Configuration(backend="onnx", precision="float32")


@pytest.fixture(scope="session", params=OPTIONS)
def backend(request: pytest.FixtureRequest) -> str:
    """The backend of this round."""
    return str(request.param)


@pytest.fixture(scope="session")
def folder(backend: str, torch_folder: Path, bundle: Path) -> Path:
    """The folder that it reads."""
    return torch_folder if backend.startswith("torch") else bundle


@pytest.fixture(scope="session")
def pipeline(backend: str, folder: Path) -> Pipeline:
    return Pipeline.load(folder, backend=backend, options=OPTIONS[backend])


@pytest.fixture(scope="session")
def stages(backend: str, folder: Path) -> Stages:
    return load_stages(backend, folder, ModelSpec.load(folder), OPTIONS[backend])


def _call(stages: Stages, name: str, *inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Call a stage with what its backend's runner makes of numpy arrays."""
    stage: Stage = getattr(stages, name)
    return stages.run(("test", name), stage, inputs)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_stages_keep_shapes_and_types_at_any_batch_size(stages: Stages, num: int) -> None:
    (embeds_BLD,) = stages.text(np.ones((num, 12), dtype=np.int64))
    assert (embeds_BLD.shape, embeds_BLD.dtype) == ((num, 12, 32), np.float32)
    latents_BChw = np.ones((num, 8, 8, 8), dtype=np.float32)
    timestep_B = np.full(num, 999, dtype=np.int64)
    (denoised_BChw,) = _call(stages, "denoise", latents_BChw, timestep_B, embeds_BLD)
    assert (denoised_BChw.shape, denoised_BChw.dtype) == ((num, 8, 8, 8), np.float32)
    (images_BHWC,) = _call(stages, "decode", denoised_BChw)
    assert (images_BHWC.shape, images_BHWC.dtype) == ((num, 64, 64, 3), np.uint8)


def test_every_row_has_its_own_timestep(stages: Stages) -> None:
    (embeds_BLD,) = stages.text(np.ones((2, 12), dtype=np.int64))
    latents_BChw = np.ones((2, 8, 8, 8), dtype=np.float32)
    (mixed,) = _call(stages, "denoise", latents_BChw, np.array([999, 249]), embeds_BLD)
    for row, timestep in enumerate((999, 249)):
        (alone,) = _call(stages, "denoise", latents_BChw[:1], np.array([timestep]), embeds_BLD[:1])
        np.testing.assert_allclose(mixed[row], alone[0], atol=1e-4)
    assert not np.allclose(mixed[0], mixed[1], atol=1e-2)


def test_inputs_that_do_not_fit_become_a_backend_error(stages: Stages) -> None:
    with pytest.raises(BackendError) as caught:
        _call(stages, "decode", np.ones((1, 3, 8, 8), dtype=np.float32))
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError):
        stages.text(np.ones((1, 12), dtype=np.float32))


def test_a_picture_is_the_same_alone_and_in_a_full_batch(pipeline: Pipeline) -> None:
    prompts = ["a red circle", "b", "", "a" * 50, "c c c", "d", "e", "a red circle"]
    seeds = [7, 1, 2, 3, 4, 5, 6, 8]
    for steps in (1, 4):
        batch = pipeline.generate(prompts, seeds, width=SIZE_PX, height=SIZE_PX, steps=steps)
        alone = pipeline.generate(
            prompts[:1], seeds[:1], width=SIZE_PX, height=SIZE_PX, steps=steps
        )
        first = batch.images_BHWC[0].astype(int)
        assert np.abs(alone.images_BHWC[0] - first).mean() <= 1
        # The last one asks for the same prompt with another seed.
        assert np.abs(batch.images_BHWC[7] - first).mean() > 5


def test_a_picture_follows_its_prompt(pipeline: Pipeline) -> None:
    images = pipeline.generate(["a", "z z z"], [7, 7], width=64, height=64, steps=1).images_BHWC
    assert not np.array_equal(images[0], images[1])


@pytest.fixture(scope="session")
def img2img_bundle(torch_folder: Path) -> Path:
    folder = torch_folder.parent / "img2img"
    export_bundle(torch_folder, folder, ExportOptions(is_img2img=True))
    return folder


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_picture_to_start_from_leads_where_it_leads_in_torch(
    backend: str, torch_folder: Path, img2img_bundle: Path, strength: float
) -> None:
    folder = torch_folder if backend.startswith("torch") else img2img_bundle
    tested = Pipeline.load(folder, backend=backend, options=OPTIONS[backend])
    reference = Pipeline.load(torch_folder, backend="torch", num_threads=1)
    given_BHWC = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    def draw(pipeline: Pipeline, pictures_BHWC: NDArray[np.uint8]) -> NDArray[np.int16]:
        generated = pipeline.generate(
            ["a", "b"], [1, 2], width=64, height=64, steps=1,
            images_BHWC=pictures_BHWC, strength=strength,
        )  # fmt: skip
        return generated.images_BHWC.astype(np.int16)

    drawn_BHWC = draw(tested, given_BHWC)
    assert np.abs(drawn_BHWC - draw(reference, given_BHWC)).mean() <= 1
    # At full strength little is left of the picture; at a quarter it decides.
    other_BHWC = np.abs(drawn_BHWC - draw(tested, 255 - given_BHWC)).mean()
    assert other_BHWC > 1 if strength < 1 else other_BHWC <= 1


def test_threads_may_share_a_pipeline(pipeline: Pipeline) -> None:
    expected = [
        pipeline.generate(["a"], [seed], width=64, height=64, steps=2).images_BHWC
        for seed in range(4)
    ]
    drawn: dict[int, bool] = {}

    def draw(seed: int) -> None:
        for _ in range(5):
            images = pipeline.generate(["a"], [seed], width=64, height=64, steps=2).images_BHWC
            drawn[seed] = drawn.get(seed, True) and np.array_equal(images, expected[seed])

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == dict.fromkeys(range(4), True)


def test_every_backend_draws_what_torch_draws(
    bundle: Path, torch_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    chosen = configurations(ModelSpec.load(folder))
    assert {one.backend for one in chosen} >= {"onnx", "openvino"}
    cpu = [one for one in chosen if one.backend in OPTIONS]
    verdicts = check_bundle(folder, cpu, source=torch_folder, num_threads=1)
    for verdict in verdicts:
        assert verdict.failures == ()
        assert verdict.reference == "torch float32"
        assert set(verdict.stages) == {"text", "denoise", "decode"}
        assert {picture.steps for picture in verdict.pictures} == {1, 2, 3, 4}
        assert {picture.batch_size for picture in verdict.pictures} == {1, 8}
    assert list(Verdicts.load(folder).verdicts) == verdicts
    ModelSpec.load(folder).verify(folder)


def test_a_check_that_fails_is_noted_and_what_failed_is_not_loaded(
    bundle: Path, torch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    command = ["check", str(folder), "--threads", "1", "--backend", "onnx"]
    assert main(command) == 0
    assert "against onnx float32" in capsys.readouterr().out
    Pipeline.load(folder, num_threads=1)

    other = Path(shutil.copytree(torch_folder, tmp_path / "other"))
    spec = ModelSpec.load(other)
    latent = spec.latent.model_copy(update={"scale": 2 * spec.latent.scale})
    spec.model_copy(update={"latent": latent}).save(other)
    assert main([*command, "--torch", str(other)]) == 1
    captured = capsys.readouterr()
    assert "TOO FAR: decode stage: mean error" in captured.out
    assert captured.err.startswith("onestep-engines: pictures differ: onnx float32 failed")
    with pytest.raises(ParityError, match="onnx float32 failed its check"):
        Pipeline.load(folder)
    Pipeline.load(folder, num_threads=1, allow_failed_check=True)
    Pipeline.load(folder, backend="openvino", num_threads=1)


def test_pictures_of_another_size_are_another_model(
    bundle: Path, torch_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(torch_folder, tmp_path / "other"))
    ModelSpec.load(other).model_copy(update={"sizes_px": ((128, 64),)}).save(other)
    with pytest.raises(ParityError, match="another torch folder"):
        check_bundle(bundle, [ONNX], source=other, num_threads=1)


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "damaged"))


@pytest.mark.parametrize("name", ["text.onnx", "denoise.onnx", "decode.onnx", "tokenizer.json"])
def test_a_missing_or_altered_file_is_named(damaged: Path, name: str) -> None:
    path = damaged / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{path} is damaged"):
        Pipeline.load(damaged)
    path.unlink()
    with pytest.raises(BundleError, match=f"{path} is missing"):
        Pipeline.load(damaged)


def _sign(folder: Path, name: str) -> None:
    """Write the digest that a file has now into model.json."""
    spec = ModelSpec.load(folder)
    stages = {
        stage: entry.model_copy(update={"sha256": sha256_of(folder / entry.file)})
        for stage, entry in spec.stages.items()
    }
    spec.model_copy(update={"stages": stages}).save(folder)


def test_a_graph_that_fits_its_digest_and_is_cut_short_is_named(damaged: Path) -> None:
    path = damaged / "denoise.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    _sign(damaged, path.name)
    with pytest.raises(BackendError, match=f"ONNX Runtime cannot load {path}.*export"):
        Pipeline.load(damaged)
    with pytest.raises(BackendError, match=f"OpenVINO cannot load {path} \\(Model can't be parsed"):
        Pipeline.load(damaged, backend="openvino")


def test_a_graph_of_another_make_is_named(damaged: Path) -> None:
    path = damaged / "text.onnx"
    model = onnx.load(path)
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids_BL" else name for name in node.input]
    onnx.save(model, path)
    _sign(damaged, path.name)
    with pytest.raises(BundleError, match=f"{path} takes tokens instead of input_ids_BL"):
        Pipeline.load(damaged)
    with pytest.raises(BundleError, match=f"{path} takes .*tokens.* instead of input_ids_BL"):
        Pipeline.load(damaged, backend="openvino")
