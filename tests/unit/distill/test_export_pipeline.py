"""An exported student drawn by diffusers' own pipelines: the picture that our sampling draws."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from distill_fixtures import tiny_codec, tiny_config, tiny_diffusion, tiny_text, tiny_unet
from PIL import Image
from teacher_folders import KINDS, save_tiny_pipeline

from distill.config import RunConfig
from distill.export import export_student, student_scheduler
from distill.export.card import model_card
from distill.export.provenance import digest_of
from distill.export.schedulers import is_evenly_spread
from distill.model_spec import timesteps_by_steps
from distill.networks.unet import load_unet
from distill.sampling import sample_student
from distill.teachers.load import load_teacher, settled
from engines.noise import unit_noise
from engines.spec import SPEC_FILE, ModelSpec, ScheduleSpec, sha256_of

SHAPE, SEEDS, PROMPTS = (4, 8, 8), (3, 7), ["a red circle", "blue square above green ring"]
TURBO = (999, 899, 799, 699)
CPU = torch.device("cpu")


def _distilled(root: Path, kind: str, *settings: str) -> tuple[RunConfig, Path]:
    """A run whose student differs from its teacher, and its settled configuration."""
    folder = save_tiny_pipeline(kind, root / "teacher")
    run = root / "run"
    config = settled(tiny_config(f"student.teacher_source={folder}", "name=tiny", *settings))
    teacher = load_teacher(config, run, CPU)
    torch.manual_seed(1)
    for parameter in teacher.unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    teacher.unet.save_pretrained(run / "student" / "model" / "unet")
    teacher.text.save(run / "student" / "model")
    return config, run


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path, Path]:
    root = tmp_path_factory.mktemp(request.param)
    config, run = _distilled(root, request.param)
    export_student(config, run, root / "out")
    return config, run, root / "out"


def _loaded(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    kinds = {kind.__name__: kind for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
    pipeline = kinds[index["_class_name"]].from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def our_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the scheduler the fresh noise of each step that our sampling draws from the seeds."""
    steps = iter(range(1, 100))

    def drawn(shape: tuple[int, ...], **kwargs: Any) -> torch.Tensor:
        assert tuple(shape) == (len(SEEDS), *SHAPE)
        return torch.from_numpy(unit_noise(SEEDS, SHAPE, next(steps)))

    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", drawn)
    yield


@torch.no_grad()
def _ours(config: RunConfig, run: Path, timesteps: tuple[int, ...]) -> np.ndarray[Any, Any]:
    teacher = load_teacher(config, run, CPU)
    student = load_unet(run / "student" / "model").eval()
    latents = sample_student(
        student, teacher.text, teacher.diffusion, PROMPTS, SEEDS, SHAPE, timesteps
    )
    pixels = (teacher.codec.decode(latents) / 2 + 0.5).clamp(0, 1)
    return pixels.permute(0, 2, 3, 1).numpy()


@pytest.mark.usefixtures("our_noise")
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_pipeline_draws_the_same_picture(
    exported: tuple[RunConfig, Path, Path], num_steps: int
) -> None:
    config, run, out = exported
    theirs = _loaded(out)(
        PROMPTS,
        num_inference_steps=num_steps,
        guidance_scale=0.0,
        latents=torch.from_numpy(unit_noise(SEEDS, SHAPE)),
        output_type="np",
    ).images
    ours = _ours(config, run, timesteps_by_steps(config.student.timesteps)[num_steps])
    assert ours.shape == theirs.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
    assert np.abs(ours[0] - ours[1]).mean() > 0.02


@pytest.mark.usefixtures("our_noise")
def test_unevenly_spread_timesteps_are_given_in_the_call(tmp_path: Path) -> None:
    config, run = _distilled(tmp_path, "sd15", f"student.timesteps={list(TURBO)}")
    export_student(config, run, tmp_path / "out")
    theirs = _loaded(tmp_path / "out")(
        PROMPTS,
        timesteps=list(TURBO),
        guidance_scale=0.0,
        latents=torch.from_numpy(unit_noise(SEEDS, SHAPE)),
        output_type="np",
    ).images
    np.testing.assert_allclose(theirs, _ours(config, run, TURBO), atol=2e-4)
    assert "`timesteps=[999, 899, 799, 699]`" in (tmp_path / "out" / "README.md").read_text()


def test_pure_noise_enters_where_a_little_signal_is_counted() -> None:
    # Epsilon keeps its table: x0 is (noise - sigma * eps) / alpha with alpha_999 = 0.0683.
    scheduler = student_scheduler(ScheduleSpec(zero_terminal_snr="input_only"), "epsilon", (999,))
    scheduler.set_timesteps(1)
    noise, output = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert scheduler.init_noise_sigma == 1.0
    assert torch.equal(scheduler.scale_model_input(noise, 999), noise)
    drawn = scheduler.step(output, scheduler.timesteps[0], noise).prev_sample
    alpha = 0.0682659
    expected = (noise - (1 - alpha**2) ** 0.5 * output) / alpha
    torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "timesteps", [(999,), (999, 499), (999, 749, 499, 249), tuple(range(999, 0, -125)), TURBO]
)
def test_the_scheduler_visits_the_students_timesteps(timesteps: tuple[int, ...]) -> None:
    scheduler = student_scheduler(ScheduleSpec(), "epsilon", timesteps)
    assert is_evenly_spread(1000, timesteps) == (timesteps != TURBO)
    for num_steps, expected in timesteps_by_steps(timesteps).items():
        if is_evenly_spread(1000, timesteps):
            scheduler.set_timesteps(num_steps)
        else:
            scheduler.set_timesteps(timesteps=list(expected))
        assert scheduler.timesteps.tolist() == list(expected)


def test_the_folder_holds_what_serving_needs(exported: tuple[RunConfig, Path, Path]) -> None:
    config, _, out = exported
    is_xl = (out / "text_encoder_2").is_dir()
    # Two text encoders are more than model.json can say.
    assert (out / SPEC_FILE).is_file() != is_xl
    if not is_xl:
        spec = ModelSpec.load(out)
        assert spec.latent.scale == 0.18215
        assert (spec.latent.downscale, spec.text.max_tokens, spec.text.width) == (4, 12, 32)
        assert spec.prediction_type == config.teacher.prediction_type
    unet = json.loads((out / "unet" / "config.json").read_text())
    assert unet["sample_size"] == 8
    # Exporting again replaces it.
    export_student(config, exported[1], out)
    assert (out / "provenance.json").is_file()


def test_provenance_names_every_weight(exported: tuple[RunConfig, Path, Path]) -> None:
    config, _, out = exported
    told = json.loads((out / "provenance.json").read_text())
    weights = told["model"]["weights"]
    stored = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")}
    assert set(weights) == stored
    assert all(sha256_of(out / name) == digest for name, digest in weights.items())
    assert told["model"]["sha256"] == digest_of(weights)
    assert digest_of(weights | {"unet/x": "0"}) != told["model"]["sha256"]
    assert told["teacher"] == config.student.teacher_source
    assert told["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    action = told["assertions"][0]["data"]["actions"][0]
    assert action["action"] == "c2pa.created"
    assert action["softwareAgent"] == told["generator"]


def _own_run(run: Path) -> RunConfig:
    codec, text = tiny_codec(), tiny_text()
    codec.model.register_to_config(scaling_factor=0.7)
    codec.model.save_pretrained(run / "autoencoder" / "model")
    tiny_unet().save_pretrained(run / "student" / "model" / "unet")
    text.save(run / "student" / "model")
    return tiny_config("license=Apache-2.0", "attribution=drawn by the project")


@torch.no_grad()
def test_the_lines_on_the_card_draw_our_own_models_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = _own_run(tmp_path / "run"), tmp_path / "out"
    export_student(config, tmp_path / "run", out)
    with pytest.raises(Exception, match=r"model_index\.json"):
        DiffusionPipeline.from_pretrained(out, local_files_only=True)
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    noise = torch.from_numpy(unit_noise([5], SHAPE))
    drawn_at_random = torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *s: noise if s == noise.shape else drawn_at_random(*s)
    )
    names: dict[str, Any] = {"folder": str(out), "prompt": PROMPTS[1]}
    exec(code[0], names)

    unet = load_unet(out)
    text, codec = tiny_text(), tiny_codec()
    codec.scale = 0.7
    diffusion = tiny_diffusion()
    latents = sample_student(unet, text, diffusion, PROMPTS[1:], [5], SHAPE, (999,))
    expected = ((codec.decode(latents)[0] / 2 + 0.5).clamp(0, 1) * 255).round()
    image = names["image"]
    assert isinstance(image, Image.Image)
    drawn = np.asarray(image).astype(int)
    assert np.abs(drawn - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert drawn.std() > 4


def _card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter, whose values are JSON, and the text below it."""
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    fields = (line.partition(": ") for line in head.splitlines())
    return {name: json.loads(value) for name, _, value in fields}, body


def test_the_card_is_in_the_hubs_form(exported: tuple[RunConfig, Path, Path]) -> None:
    _, _, out = exported
    head, body = _card(out)
    # A teacher in a local folder has no name on the hub, and a licence that we cannot know.
    assert head["license"] == "other"
    assert "base_model" not in head
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "guidance_scale=0.0" in body
    assert "has not named a licence" in body
    assert "## Figures" not in body


def test_a_teacher_from_the_hub_names_the_base_model_and_its_licence() -> None:
    config = tiny_config("student.teacher_source=stabilityai/stable-diffusion-2-1@main")
    text = model_card(config, Path("."), "StableDiffusionPipeline")
    assert 'license: "openrail++"' in text
    assert 'base_model: "stabilityai/stable-diffusion-2-1"' in text


def test_the_card_shows_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    config, run = _own_run(tmp_path / "run"), tmp_path / "run"
    scores = [
        {
            "sampler": sampler,
            "kind": "with style",
            "judge": "SqueezeNet",
            "metrics": {"frechet_distance": {"value": value, "low": None, "high": None}},
        }
        for sampler, value in (("student, 1 step", 0.125), ("teacher, 25 steps", 0.5))
    ]
    (run / "evaluation.json").write_text(json.dumps({"scores": scores}))
    export_student(config, run, tmp_path / "out")
    head, body = _card(tmp_path / "out")
    assert head["license"] == "apache-2.0"
    assert "| sampler | frechet distance |" in body
    assert "| student, 1 step | 0.125 |" in body
    assert "| attribution | drawn by the project |" in body


def test_a_runs_own_card_is_kept(tmp_path: Path) -> None:
    config, run = _own_run(tmp_path / "run"), tmp_path / "run"
    (run / "README.md").write_text("# mine\n")
    export_student(config, run, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# mine\n"
