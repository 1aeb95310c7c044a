"""Sets that do not fit in memory: encoded as they are drawn, or read from disk encoded."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_fixtures import write_parquet
from distill_fixtures import tiny_codec, tiny_config, tiny_pictures, tiny_teacher
from safetensors import safe_open

from distill.autoencoder import build_autoencoder
from distill.config import ConfigError, DataConfig
from distill.dataset import PictureSource, Row, StreamSource, for_training, open_rows
from distill.draws import Draws
from distill.methods.base import Sample
from distill.networks.codec import Codec
from distill.networks.conditioning import Conditioning
from distill.samples.precompute import precompute, shard_path
from distill.samples.source import PrecomputedSamples, StreamedSamples
from distill.teachers.base import Teacher
from distill.training.checkpoint import CheckpointError

BATCH = 4


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


def _source(num: int = 10, seed: int = 0) -> PictureSource:
    return PictureSource(tiny_pictures(num), seed)


def _write(source: Any, teacher: Teacher, folder: Path, **changed: Any) -> int:
    settings = {"dtype": "float32", "rows_per_shard": 4} | changed
    return precompute(source, teacher, folder, **settings)


def _open(folder: Path, teacher: Teacher, seed: int = 0) -> PrecomputedSamples:
    return PrecomputedSamples(folder, teacher, BATCH, seed=seed, num_together=2)


def _draws(iteration: int, positions: range = range(BATCH)) -> Draws:
    return Draws(0, iteration, positions)


def _assert_equal(one: Sample, other: Sample, tolerance: float = 1e-5) -> None:
    for a, b in (
        (one.latents_BChw, other.latents_BChw),
        (one.conditioning.text_embeds_BLD, other.conditioning.text_embeds_BLD),
        (one.conditioning.pooled_BD, other.conditioning.pooled_BD),
        (one.empty.text_embeds_BLD, other.empty.text_embeds_BLD),
    ):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_streamed_samples_are_the_encoded_pictures(teacher: Teacher) -> None:
    source = _source()
    samples = StreamedSamples(source, teacher, BATCH)
    sample = samples.sample(_draws(3))
    batch = source.sample(range(12, 16))
    with torch.no_grad():
        images_BCHW = torch.from_numpy(batch.images_BHWC).permute(0, 3, 1, 2) / 127.5 - 1
        expected = teacher.codec.encode(images_BCHW)
        conditioning = teacher.text.encode(teacher.text.tokens(batch.captions))
        empty = teacher.text.encode(teacher.text.tokens([""] * BATCH))
    _assert_equal(sample, Sample(expected, conditioning, empty))
    assert sample.images_BCHW is not None
    torch.testing.assert_close(sample.images_BCHW, images_BCHW)
    assert samples.shape == tuple(expected.shape[1:])


def test_what_was_precomputed_equals_what_is_encoded_when_drawn(
    tmp_path: Path, teacher: Teacher
) -> None:
    # One shard, so that both have one block and so the same order.
    _write(_source(), teacher, tmp_path, rows_per_shard=100)
    streamed, read = StreamedSamples(_source(), teacher, BATCH), _open(tmp_path, teacher)
    assert len(read) == 10 and read.shape == streamed.shape
    for iteration in range(4):
        _assert_equal(read.sample(_draws(iteration)), streamed.sample(_draws(iteration)))


def test_shards_hold_every_picture_once_per_epoch(tmp_path: Path, teacher: Teacher) -> None:
    assert _write(_source(), teacher, tmp_path) == 3
    read = _open(tmp_path, teacher)
    drawn = torch.cat([read.sample(_draws(i)).latents_BChw for i in range(5)])
    assert len(torch.unique(drawn[:10], dim=0)) == len(torch.unique(drawn[10:], dim=0)) == 10
    assert not torch.equal(drawn[:10], drawn[10:])
    assert set(read.captions(12)) <= {t for texts in tiny_pictures(10).captions for t in texts}


def test_parts_of_a_batch_are_the_whole_batch(tmp_path: Path, teacher: Teacher) -> None:
    _write(_source(), teacher, tmp_path)
    for samples in (_open(tmp_path, teacher), StreamedSamples(_source(), teacher, BATCH)):
        whole = samples.sample(_draws(5))
        _assert_equal(samples.sample(_draws(5, range(2, 4))), whole.at(slice(2, 4)))
        scattered = Draws(0, 5, [3, 1])
        torch.testing.assert_close(
            samples.sample(scattered).latents_BChw, whole.latents_BChw[[3, 1]]
        )


def test_resuming_reads_the_same_samples(tmp_path: Path, teacher: Teacher) -> None:
    _write(_source(), teacher, tmp_path)
    straight = [_open(tmp_path, teacher).sample(_draws(i)) for i in range(6)]
    _assert_equal(_open(tmp_path, teacher).sample(_draws(4)), straight[4], 0.0)
    other = _open(tmp_path, teacher, seed=1).sample(_draws(4))
    assert not torch.equal(other.latents_BChw, straight[4].latents_BChw)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_halves_the_files(
    tmp_path: Path, teacher: Teacher, dtype: str, tolerance: float
) -> None:
    _write(_source(), teacher, tmp_path / "full", rows_per_shard=100)
    _write(_source(), teacher, tmp_path / "half", rows_per_shard=100, dtype=dtype)
    full, half = _open(tmp_path / "full", teacher), _open(tmp_path / "half", teacher)
    sample = half.sample(_draws(0))
    assert sample.latents_BChw.dtype == sample.conditioning.pooled_BD.dtype == torch.float32
    _assert_equal(sample, full.sample(_draws(0)), tolerance)
    sizes = [shard_path(tmp_path / name, 0).stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]


def test_weights_are_kept(tmp_path: Path, teacher: Teacher) -> None:
    pictures = tiny_pictures(26)
    config = DataConfig(rare_groups=("single",), rare_group_weight=0.0)
    _write(PictureSource(for_training(pictures, config), 0), teacher, tmp_path)
    read = _open(tmp_path, teacher)
    drawn = torch.cat([read.sample(_draws(i)).latents_BChw for i in range(6)])
    with torch.no_grad():
        pairs = StreamedSamples(PictureSource(pictures.select([24, 25]), 0), teacher, 2)
        known = pairs.sample(Draws(0, 0, range(2))).latents_BChw
    distance = torch.cdist(drawn.flatten(1), known.flatten(1)).min(1).values
    assert distance.max() < 1e-4


def test_a_killed_run_goes_on_with_the_next_shard(tmp_path: Path, teacher: Teacher) -> None:
    class Killed(Exception):
        pass

    class Dying(PictureSource):
        def row(self, index: int) -> Row:
            if index == 9:
                raise Killed
            return super().row(index)

    with pytest.raises(Killed):
        _write(Dying(tiny_pictures(10), 0), teacher, tmp_path)
    before = [shard_path(tmp_path, n).stat().st_mtime_ns for n in range(2)]
    assert not shard_path(tmp_path, 2).exists()
    with pytest.raises(ConfigError, match=r"unfinished or damaged.*goes on where it stopped"):
        _open(tmp_path, teacher)
    shard_path(tmp_path, 1).write_bytes(shard_path(tmp_path, 1).read_bytes()[:200])
    assert _write(_source(), teacher, tmp_path) == 2
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == before[0]
    _write(_source(), teacher, tmp_path / "straight")
    for number in range(3):
        one, other = (
            safe_open(shard_path(folder, number), "pt")
            for folder in (tmp_path, tmp_path / "straight")
        )
        assert set(one.keys()) == set(other.keys())
        assert all(torch.equal(one.get_tensor(k), other.get_tensor(k)) for k in one.keys())


@contextmanager
def _small_files() -> Iterator[None]:
    """The system refuses to write files beyond 60 kB, as a full disk would.

    Not a fixture: what the tests print may go to a file that is larger already.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, teacher: Teacher) -> None:
    captions = tuple(
        (text,) * (40 if i == 5 else 1) for i, (text, *_) in enumerate(tiny_pictures(10).captions)
    )
    source = PictureSource(replace(tiny_pictures(10), captions=captions), 0)
    full = pytest.raises(CheckpointError, match=r"cannot write to .*make room and run precompute")
    with full, _small_files():
        _write(source, teacher, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000.safetensors",
        "empty.safetensors",
        "index.json",
    ]


def test_more_than_the_disk_holds_is_refused_early(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"about 0\.\d GB more are needed, 0\.0 GB are free"):
        _write(_source(), teacher, tmp_path)
    assert not shard_path(tmp_path, 1).exists()


def test_shards_of_other_encoders_or_another_set_are_refused(
    tmp_path: Path, teacher: Teacher
) -> None:
    _write(_source(), teacher, tmp_path)
    torch.manual_seed(1)
    other = Codec(build_autoencoder(tiny_config().autoencoder))
    for action in (_open, lambda folder, changed: _write(_source(), changed, folder)):
        with pytest.raises(ConfigError, match="made with another autoencoder: remove it"):
            action(tmp_path, replace(teacher, codec=other))
    with pytest.raises(ConfigError, match="another source"):
        _write(_source(9), teacher, tmp_path)
    with pytest.raises(ConfigError, match="another dtype or number of rows per shard"):
        _write(_source(), teacher, tmp_path, rows_per_shard=5)
    with pytest.raises(ConfigError, match=r"nothing precomputed in .*onestep-distill precompute"):
        _open(tmp_path / "gone", teacher)
    (tmp_path / "index.json").write_text(json.dumps({"made_of": 1}))
    with pytest.raises(ConfigError, match=r"index\.json is damaged"):
        _open(tmp_path, teacher)


def test_damaged_rows_are_left_out_of_the_shards(tmp_path: Path, teacher: Teacher) -> None:
    write_parquet(tmp_path / "a.parquet", range(4))
    config = DataConfig(path=str(tmp_path / "a.parquet"), image_size_px=32)
    rows = open_rows(config.path, config, "data.path")
    original = rows.read

    def read(index: int, *, with_image: bool = True) -> Any:
        raw = dict(original(index, with_image=with_image))
        return raw | {"image": b"damaged"} if index in (1, 2, 3) else raw

    rows.read = read  # type: ignore[method-assign]  # damage of single rows
    _write(StreamSource(rows, config, 0), teacher, tmp_path / "out", rows_per_shard=2)
    samples = _open(tmp_path / "out", teacher)
    assert len(samples) == 1  # and a shard without any
    assert samples.sample(_draws(0)).latents_BChw.shape[0] == BATCH


def test_time_ids_and_two_tokenizers_survive(tmp_path: Path, teacher: Teacher) -> None:
    class TwoTowers(torch.nn.Module):
        """The token layout and the time ids of a text encoder pair."""

        def tokens(self, prompts: Any) -> torch.Tensor:
            ids_BL = teacher.text.tokens(prompts)
            return torch.stack([ids_BL, ids_BL], dim=1)

        def encode(self, input_ids: torch.Tensor) -> Conditioning:
            single = teacher.text.encode(input_ids[:, 1])
            time_ids_BS = torch.tensor([[1024.0, 1023, 0, 0, 1024, 1023]]).expand(len(single), -1)
            return Conditioning(single.text_embeds_BLD, single.pooled_BD, time_ids_BS)

    paired = replace(teacher, text=TwoTowers(), codec=tiny_codec())
    _write(_source(), paired, tmp_path, dtype="bfloat16")
    sample = _open(tmp_path, paired).sample(_draws(0))
    for conditioning in (sample.conditioning, sample.empty):
        assert conditioning.time_ids_BS is not None
        assert conditioning.time_ids_BS.tolist() == [[1024, 1023, 0, 0, 1024, 1023]] * BATCH
