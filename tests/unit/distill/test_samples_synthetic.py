"""A set whose pictures the teacher draws: which, with what noise, how often, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from distill_fixtures import tiny_config, tiny_pictures, tiny_teacher, tiny_unet
from safetensors import safe_open

from distill.__main__ import _parser
from distill.config import ConfigError, DataConfig
from distill.dataset import PictureSource, for_training
from distill.draws import Draws
from distill.networks.unet import freeze
from distill.samples.precompute import precompute, shard_path
from distill.samples.source import PrecomputedSamples
from distill.samples.synthetic import Drawing
from distill.sampling import sample_teacher
from distill.stages import _drawing
from distill.teachers.base import Teacher

DRAWING = Drawing(num_steps=3, guidance=2.0, seed=7)
BATCH = 4


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


def _source(num: int = 6) -> PictureSource:
    return PictureSource(tiny_pictures(num), 0)


def _write(source: Any, teacher: Teacher, folder: Path, drawing: Drawing | None = DRAWING) -> int:
    return precompute(source, teacher, folder, dtype="float32", rows_per_shard=4, drawing=drawing)


def _tensors(folder: Path, name: str) -> torch.Tensor:
    paths = sorted(folder.glob("0*.safetensors"))
    return torch.cat([safe_open(path, "pt").get_tensor(name) for path in paths])


def test_every_caption_gets_its_own_picture(tmp_path: Path, teacher: Teacher) -> None:
    """Each against a drawing of that caption alone."""
    assert _write(_source(), teacher, tmp_path) == 2
    drawn, pooled = _tensors(tmp_path, "latents_NChw"), _tensors(tmp_path, "pooled_MD")
    captions = [
        (text, crc32(f"7 {row} {k}".encode()))
        for row, texts in enumerate(tiny_pictures(6).captions)
        for k, text in enumerate(texts)
    ]
    assert len(captions) == len(drawn) == len(pooled) > 6
    for (text, seed), latents, vector in zip(captions, drawn, pooled, strict=True):
        alone = sample_teacher(
            teacher.unet,
            teacher.text,
            teacher.diffusion,
            [text],
            [seed],
            (4, 8, 8),
            3,
            2.0,
            "dpm++",
        )
        torch.testing.assert_close(latents, alone[0], rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            said = teacher.text.encode(teacher.text.tokens([text])).pooled_BD[0]
        torch.testing.assert_close(vector, said, rtol=1e-4, atol=1e-5)


def test_a_distillation_draws_them_with_their_captions(tmp_path: Path, teacher: Teacher) -> None:
    _write(_source(), teacher, tmp_path)
    drawn, pooled = _tensors(tmp_path, "latents_NChw"), _tensors(tmp_path, "pooled_MD")
    samples = PrecomputedSamples(tmp_path, teacher, BATCH, seed=0, num_together=2)
    assert len(samples) == len(drawn)
    sample = samples.sample(Draws(0, 1, range(BATCH)))
    for latents, vector in zip(sample.latents_BChw, sample.conditioning.pooled_BD, strict=True):
        (row,) = [i for i, known in enumerate(drawn) if torch.equal(known, latents)]
        assert torch.equal(pooled[row], vector)


def test_the_captions_of_a_picture_share_its_weight(tmp_path: Path, teacher: Teacher) -> None:
    config = DataConfig(rare_groups=("single",), rare_group_weight=0.25)
    pictures = for_training(tiny_pictures(26), config)
    assert pictures.weights_N is not None
    _write(PictureSource(pictures, 0), teacher, tmp_path)
    given = _tensors(tmp_path, "weights_N")
    start = 0
    for texts, weight in zip(pictures.captions, pictures.weights_N, strict=True):
        shares = given[start : start + len(texts)]
        torch.testing.assert_close(shares, torch.full_like(shares, weight / len(texts)))
        start += len(texts)
    assert start == len(given)


def test_what_was_cut_off_is_drawn_the_same(tmp_path: Path, teacher: Teacher) -> None:
    _write(_source(), teacher, tmp_path)
    before = _tensors(tmp_path, "latents_NChw")
    shard_path(tmp_path, 1).unlink()
    assert _write(_source(), teacher, tmp_path) == 1
    assert torch.equal(_tensors(tmp_path, "latents_NChw"), before)


def test_other_drawings_are_not_mixed(tmp_path: Path, teacher: Teacher) -> None:
    _write(_source(), teacher, tmp_path / "drawn")
    _write(_source(), teacher, tmp_path / "encoded", None)
    other = replace(teacher, unet=freeze(tiny_unet(seed=5)))
    words = "made with another drawing by the teacher: remove it"
    for folder, by, drawing in (
        ("drawn", teacher, None),
        ("encoded", teacher, DRAWING),
        ("drawn", teacher, replace(DRAWING, guidance=3.0)),
        ("drawn", teacher, replace(DRAWING, solver="ddim")),
        ("drawn", other, DRAWING),
    ):
        with pytest.raises(ConfigError, match=words):
            _write(_source(), by, tmp_path / folder, drawing)
    assert _write(_source(), teacher, tmp_path / "drawn") == 0


def _asked(*words: str) -> Drawing | None:
    config = tiny_config("seed=3")
    return _drawing(config, _parser().parse_args(["precompute", *words]))


def test_the_command_says_how_to_draw() -> None:
    assert _asked() is None
    assert _asked("--synthetic-steps", "8") == Drawing(8, 1.0, "dpm++", 3, False)
    asked = _asked("--synthetic-steps=8", "--synthetic-guidance=4.5", "--synthetic-solver=ddim")
    assert asked == Drawing(8, 4.5, "ddim", 3, False)
    for words in (("--synthetic-guidance=4",), ("--synthetic-solver=ddim",)):
        with pytest.raises(ConfigError, match="need --synthetic-steps"):
            _asked(*words)
    with pytest.raises(ConfigError, match="--synthetic-steps must be at least 1, got 0"):
        _asked("--synthetic-steps=0")
    with pytest.raises(ConfigError, match="--synthetic-guidance must be above 0, got -1"):
        _asked("--synthetic-steps=1", "--synthetic-guidance=-1")
