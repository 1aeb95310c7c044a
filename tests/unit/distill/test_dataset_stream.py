"""Samples of shards, addressed by position."""

from __future__ import annotations

import io
import logging
import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_fixtures import numbered_png, numbers_in, write_folder, write_parquet, write_tar
from PIL import Image

from distill.config import ConfigError, DataConfig
from distill.dataset import (
    ImageBatch,
    PictureSource,
    Prefetched,
    Slices,
    StreamSource,
    for_training,
    load_pictures,
    open_rows,
)

NUM = 24
FORMS = ("parquet", "tar", "folder")


def _write(folder: Path, form: str) -> None:
    """Three shards of eight, or one folder of all."""
    folder.mkdir(exist_ok=True)
    if form == "folder":
        write_folder(folder, range(NUM))
    for shard in range(3):
        numbers = range(shard * 8, shard * 8 + 8)
        if form == "parquet":
            write_parquet(folder / f"{shard}.parquet", numbers)
        elif form == "tar":
            write_tar(folder / f"{shard}.tar", numbers)


def _open(folder: Path, seed: int = 0, index: Path | None = None, **fields: Any) -> StreamSource:
    config = DataConfig(path=str(folder), image_size_px=8, num_read_threads=2, **fields)
    return StreamSource(open_rows(config.path, config, "data.path", index), config, seed)


def _numbers(source: StreamSource, positions: Sequence[int]) -> list[int]:
    return numbers_in(source.sample(positions).images_BHWC)


@pytest.mark.parametrize("form", FORMS)
def test_every_sample_comes_once_per_epoch(tmp_path: Path, form: str) -> None:
    _write(tmp_path, form)
    source = _open(tmp_path, shuffle_blocks=2)
    for epoch in range(2):
        batch = source.sample(range(epoch * NUM, (epoch + 1) * NUM))
        numbers = numbers_in(batch.images_BHWC)
        assert sorted(numbers) == list(range(NUM))
        for number, caption in zip(numbers, batch.captions, strict=True):
            assert caption in (f"number {number}", f"no. {number}")
        assert len({caption[:3] for caption in batch.captions}) == 2


@pytest.mark.parametrize("form", FORMS)
def test_resuming_shows_the_same_samples(tmp_path: Path, form: str) -> None:
    _write(tmp_path, form)
    slices = Slices(5)
    straight = [_open(tmp_path).sample(slices.at(i)) for i in range(12)]
    resumed = _open(tmp_path)
    for iteration in range(7, 12):
        again = resumed.sample(slices.at(iteration))
        assert np.array_equal(again.images_BHWC, straight[iteration].images_BHWC)
        assert again.captions == straight[iteration].captions


def test_the_order_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    _write(tmp_path, "tar")
    alone = _open(tmp_path)
    whole = [n for i in range(4) for n in _numbers(alone, Slices(12).at(i))]
    shared = []
    ranks = [_open(tmp_path) for _ in range(2)]
    for iteration in range(4):
        for rank, source in enumerate(ranks):
            for micro_batch in range(3):
                shared += _numbers(source, Slices(12, rank, 2, 3).at(iteration, micro_batch))
    assert shared == whole


def test_the_seed_changes_the_order_and_the_captions(tmp_path: Path) -> None:
    _write(tmp_path, "tar")
    first, second = (_open(tmp_path, seed).sample(range(NUM)) for seed in (0, 1))
    assert numbers_in(first.images_BHWC) != numbers_in(second.images_BHWC)


def _damage(folder: Path, form: str) -> set[int]:
    """Spoil a part of the second shard; return the numbers that can no longer be read."""
    file = folder / f"1.{form}"
    content = bytearray(file.read_bytes())
    if form == "tar":
        file.write_bytes(content[: 5 * 2048 + 700])  # in the middle of the sixth picture
        return {13, 14, 15}
    column = pq.ParquetFile(file).metadata.row_group(1).column(0)
    start, length = column.data_page_offset, column.total_compressed_size
    content[start : start + length // 2] = b"\xff" * (length // 2)
    file.write_bytes(content)
    return {12, 13, 14, 15}


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_damaged_shard_moves_no_other_sample(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "set", form)
    before = _numbers(_open(tmp_path / "set", index=tmp_path / "index"), range(2 * NUM))
    lost = _damage(tmp_path / "set", form)
    with caplog.at_level(logging.WARNING):
        source = _open(tmp_path / "set", index=tmp_path / "index")
        after = _numbers(source, range(2 * NUM))
    for number, again in zip(before, after, strict=True):
        assert again == number or (number in lost and again not in lost)
    assert source.num_skipped == len(lost)
    assert f"replacing 1.{form}" in caplog.text
    assert _numbers(_open(tmp_path / "set", index=tmp_path / "index"), range(2 * NUM)) == after


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_shard_that_is_gone_altogether_moves_no_other_sample(tmp_path: Path, form: str) -> None:
    _write(tmp_path / "set", form)
    before = _numbers(_open(tmp_path / "set", index=tmp_path / "index"), range(NUM))
    (tmp_path / "set" / f"1.{form}").write_bytes(b"")
    after = _numbers(_open(tmp_path / "set", index=tmp_path / "index"), range(NUM))
    kept = [(a, b) for a, b in zip(before, after, strict=True) if a not in range(8, 16)]
    assert len(kept) == 16 and all(a == b for a, b in kept)
    assert not set(after) & set(range(8, 16))
    unknown = _open(tmp_path / "set")  # without an index, nothing is known of what it held
    assert sorted(_numbers(unknown, range(16))) == [*range(8), *range(16, 24)]


def test_an_index_is_kept_and_follows_a_changed_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", range(3))
    config = DataConfig(path=str(tmp_path / "a.tar"), image_size_px=8)
    rows = open_rows(config.path, config, "data.path", tmp_path / "index")
    (kept,) = (tmp_path / "index").iterdir()
    kept.write_bytes(b"damaged")
    again = open_rows(config.path, config, "data.path", tmp_path / "index")
    assert (len(again), again.fingerprint) == (3, rows.fingerprint)
    write_tar(tmp_path / "a.tar", range(5))
    longer = open_rows(config.path, config, "data.path", tmp_path / "index")
    assert len(longer) == 5
    assert longer.fingerprint != rows.fingerprint


def test_words_of_a_tar_may_be_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [1, 2], words="json")
    pictures = load_pictures(DataConfig(path=str(tmp_path / "a.tar"), image_size_px=8))
    assert pictures.captions == (("number 1",), ("number 2",))
    assert pictures.styles == ("flat", "flat")


def test_members_without_words_or_picture_are_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [1])
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for name, content in (
            ("sub/2.png", numbered_png(2)),
            ("3.txt", b"three"),
            ("4.png", numbered_png(4)),
            ("4.json", b"[4]"),
            ("readme.md", b"words"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    pictures = load_pictures(DataConfig(path=str(tmp_path / "a.tar"), image_size_px=8))
    assert numbers_in(pictures.images_NHWC) == [1]
    assert pictures.num_skipped == 2  # 2 has no words, those of 4 are no object


def test_a_stream_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    rows = [{"image": b"no picture", "captions": ["x"]}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"data\.path .*a\.parquet: 200 rows drawn in turn"):
        _open(tmp_path / "a.parquet").sample([0])
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="no row in any file that can be read"):
        _open(tmp_path / "a.parquet")
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet has no column `image`; it has picture"):
        _open(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", [1])
    with pytest.raises(ConfigError, match=r"data\.styles and data\.concepts choose among pictures"):
        _open(tmp_path / "b.parquet", styles=("flat",))


def test_rare_groups_are_drawn_by_their_weight(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(8), group="Flags")
    write_parquet(tmp_path / "b.parquet", range(8, 16), group="Food")
    source = _open(tmp_path, rare_groups=("Flags",), rare_group_weight=0.25)
    num = 1200
    share = np.mean([n < 8 for n in _numbers(source, range(num))])
    assert abs(share - 0.2) < 3 * (0.2 * 0.8 / num) ** 0.5


def test_a_share_of_a_stream_is_recoloured(tmp_path: Path) -> None:
    source = load_pictures(DataConfig(num_shapes=1, image_size_px=8))  # a red circle
    stream = io.BytesIO()
    Image.fromarray(source.images_NHWC[0]).save(stream, "PNG")
    row = {"image": stream.getvalue(), "captions": ["red circle"], "name": "red circle"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    batch = _open(tmp_path, recoloured_share=0.3).sample(range(400))
    is_red = np.array([caption == "red circle" for caption in batch.captions])
    assert abs(is_red.mean() - 0.7) < 3 * (0.3 * 0.7 / 400) ** 0.5
    own = source.images_NHWC[0]
    assert all(
        (image == own).all() == red for image, red in zip(batch.images_BHWC, is_red, strict=True)
    )


def test_row_groups_are_read_once_and_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", range(40), group_size=4)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, number: int, **kwargs: Any) -> Any:
        read.append(number)
        return original(self, number, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    source = _open(tmp_path, shuffle_blocks=2)
    for iteration in range(10):
        source.sample(Slices(4).at(iteration))
    assert Counter(read) == Counter(range(10))
    held = source._rows._recent._held  # type: ignore[attr-defined]  # what memory it takes
    assert len(held) <= 4


def test_pictures_in_memory_are_addressed_alike() -> None:
    pictures = load_pictures(DataConfig(num_shapes=26, image_size_px=8))
    source = PictureSource(pictures, seed=1)
    batch = source.sample(range(26))
    assert {text for texts in pictures.captions for text in texts} >= set(batch.captions)
    assert sorted(map(bytes, batch.images_BHWC)) == sorted(map(bytes, pictures.images_NHWC))
    again = PictureSource(pictures, seed=1).sample([7, 3])
    assert again.captions == (batch.captions[7], batch.captions[3])
    rare = for_training(pictures, DataConfig(rare_groups=("single",), rare_group_weight=0.0))
    weighted = PictureSource(rare, 1)
    assert weighted.fingerprint != source.fingerprint
    pairs = {text for texts in pictures.captions[24:] for text in texts}
    assert set(weighted.sample(range(20)).captions) <= pairs


class _Watched:
    """A source that notes which positions it was asked for, and by which thread."""

    fingerprint, weights_N = "", None

    def __init__(self) -> None:
        self.asked: list[range] = []
        self.is_ready = threading.Event()

    def __len__(self) -> int:
        return 100

    def row(self, index: int) -> None:
        return None

    def captions(self, num: int) -> list[str]:
        return []

    def sample(self, positions: Sequence[int]) -> ImageBatch:
        assert isinstance(positions, range)
        self.asked.append(positions)
        if len(self.asked) == 3:
            self.is_ready.set()
        if positions.start >= 60:
            raise ConfigError("nothing there")
        images = np.array(positions, dtype=np.uint8)[:, None, None, None]
        return ImageBatch(images, tuple(map(str, positions)))


def test_batches_are_read_ahead_once_each_and_in_order() -> None:
    source, slices = _Watched(), Slices(20, rank=1, num_ranks=2)
    ahead = Prefetched(source, slices)
    assert ahead.sample(slices.at(0)).captions == tuple(map(str, range(10, 20)))
    assert source.is_ready.wait(5)
    assert source.asked == [slices.at(0), slices.at(1), slices.at(2)]
    assert ahead.sample(slices.at(1)).captions == tuple(map(str, range(30, 40)))
    # A jump, as after resuming, drops what was read ahead.
    assert ahead.sample(slices.at(0)).captions == tuple(map(str, range(10, 20)))
    with pytest.raises(ConfigError, match="nothing there"):
        ahead.sample(slices.at(3))
    ahead.close()
