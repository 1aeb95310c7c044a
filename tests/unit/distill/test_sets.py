"""A set as the commands use it: described, precomputed, opened for a distillation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dataset_fixtures import write_folder, write_parquet
from distill_fixtures import tiny_config, tiny_teacher

from distill.config import ConfigError, RunConfig
from distill.dataset import load_pictures, write_example
from distill.draws import Draws
from distill.samples.sets import describe, open_samples, precompute_set
from distill.teachers.base import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


def _config(path: Path | str, access: str) -> RunConfig:
    return tiny_config(
        f"data.path={path}", f'data.access="{access}"', "student.optimizer.batch_size=4"
    )


def test_the_example_is_a_folder_that_can_be_read(tmp_path: Path) -> None:
    assert write_example(tmp_path / "example") == 200
    config = tiny_config(f"data.path={tmp_path / 'example'}", "data.image_size_px=64").data
    pictures = load_pictures(config)
    assert (len(pictures), pictures.num_skipped) == (200, 0)
    assert pictures.captions[0] == ("red circle", "a red circle")
    assert pictures.images_NHWC[0, 32, 32].tolist() == [214, 40, 40]
    with pytest.raises(ConfigError, match=r"--example: .* is not empty: name a new folder"):
        write_example(tmp_path / "example")


def test_a_set_is_described(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", range(3))
    (tmp_path / "pictures" / "00001.png").write_bytes(b"damaged")
    lines = list(describe(_config(tmp_path / "pictures", "memory"), tmp_path))
    assert lines[:2] == ["2 pictures read, 1 rows skipped", "2 chosen, 4 captions"]
    assert lines[-1].startswith("for example: no. 0; no. 2")
    drawn = list(describe(tiny_config(), tmp_path))
    assert drawn[1:3] == ["48 chosen, 48 concepts, 144 captions", "  flat: 48"]
    streamed = list(describe(_config(tmp_path / "pictures", "stream"), tmp_path))
    assert streamed[0] == "3 rows in a stream, decoded as they are drawn"


@pytest.mark.parametrize("access", ["memory", "stream", "precomputed"])
def test_every_access_gives_the_same_pictures(
    tmp_path: Path, teacher: Teacher, access: str
) -> None:
    write_parquet(tmp_path / "a.parquet", range(8))
    if access == "precomputed":
        said = precompute_set(
            _config(tmp_path / "a.parquet", "stream"), tmp_path, teacher, "float32", 3
        )
        assert said.startswith("3 shards written, 8 rows in all")
        assert "--set data.access=precomputed" in said
    config = _config(tmp_path / "a.parquet", access)
    samples, prompts = open_samples(config, tmp_path, teacher)
    assert 0 < len(prompts) <= 36 and all("n" in prompt for prompt in prompts)
    drawn = [samples.sample(Draws(0, i, range(4))) for i in range(6)]
    with torch.no_grad():
        pictures = load_pictures(config.data)
        images_BCHW = torch.from_numpy(pictures.images_NHWC).permute(0, 3, 1, 2) / 127.5 - 1
        known = teacher.codec.encode(images_BCHW)
    assert samples.shape == tuple(known.shape[1:])
    latents = torch.cat([sample.latents_BChw for sample in drawn])
    distance = torch.cdist(latents.flatten(1), known.flatten(1)).min(1)
    assert distance.values.max() < 1e-3
    assert len(set(distance.indices.tolist())) > 4
    again, _ = open_samples(config, tmp_path, teacher)
    assert torch.equal(again.sample(Draws(0, 5, range(4))).latents_BChw, drawn[5].latents_BChw)


def test_shapes_are_no_stream(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'data\.access="stream" reads files: name them'):
        list(describe(_config("shapes", "stream"), tmp_path))
