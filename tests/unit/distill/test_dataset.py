"""Reading captioned pictures: the Parquet forms, and what is damaged."""

from __future__ import annotations

import io
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distill.config import ConfigError, DataConfig
from distill.dataset import (
    filter_pictures,
    for_training,
    load_heldout,
    load_pictures,
    probe_prompts,
    to_model_range,
    to_uint8,
)


def _png(colour: str | tuple[int, ...] = "red", mode: str = "RGB", size_px: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size_px, size_px), colour).save(stream, "PNG")
    return stream.getvalue()


def _write(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return DataConfig(path=str(path), image_size_px=8)


def test_a_list_of_captions_is_read(tmp_path: Path) -> None:
    row = {"image": _png(), "captions": [" a rose ", "rose"], "name": "rose", "style": "flat"}
    pictures = load_pictures(_write(tmp_path / "a.parquet", [row]))
    assert pictures.captions == (("a rose", "rose"),)
    assert (pictures.names, pictures.styles, pictures.groups) == (("rose",), ("flat",), ("",))
    assert pictures.images_NHWC.shape == (1, 8, 8, 3)
    assert pictures.images_NHWC[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("column", ["caption", "captions"])
def test_a_single_caption_is_read_whole(tmp_path: Path, column: str) -> None:
    pictures = load_pictures(_write(tmp_path / "a.parquet", [{"image": _png(), column: "a rose"}]))
    assert pictures.captions == (("a rose",),)
    assert pictures.names == ("",)


def test_the_struct_of_the_datasets_library_is_read(tmp_path: Path) -> None:
    row = {"image": {"bytes": _png("blue"), "path": "blue.png"}, "caption": "blue"}
    pictures = load_pictures(_write(tmp_path / "a.parquet", [row]))
    assert pictures.images_NHWC[0, 4, 4].tolist() == [0, 0, 255]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    _write(tmp_path / "b.parquet", [{"image": _png(), "caption": "second"}])
    _write(tmp_path / "a.parquet", [{"image": _png(), "caption": "first"}])
    (tmp_path / "notes.txt").write_text("no Parquet")
    pictures = load_pictures(DataConfig(path=str(tmp_path), image_size_px=8))
    assert pictures.captions == (("first",), ("second",))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    rows = [
        {"image": _png((255, 0, 0, 0), "RGBA"), "caption": "nothing"},
        {"image": _png((0, 0, 0, 128), "RGBA"), "caption": "half"},
    ]
    pictures = load_pictures(_write(tmp_path / "a.parquet", rows))
    assert pictures.images_NHWC[0].min() == 255
    assert pictures.images_NHWC[1, 0, 0].tolist() == [127, 127, 127]


def test_pictures_come_at_the_asked_size(tmp_path: Path) -> None:
    rows = [{"image": _png(size_px=21), "caption": "large"}]
    assert load_pictures(_write(tmp_path / "a.parquet", rows)).images_NHWC.shape == (1, 8, 8, 3)


def _bomb() -> bytes:
    """A PNG whose header promises more pixels than Pillow will decode."""
    whole = bytearray(_png())
    header = bytearray(whole[12:29])
    header[4:12] = (40000).to_bytes(4, "big") * 2
    whole[12:29] = header
    whole[29:33] = zlib.crc32(header).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", _png()[:20], _png()[:45], _bomb(), None],
    ids=["empty", "text", "cut header", "cut pixels", "bomb", "null"],
)
def test_a_damaged_picture_is_skipped_counted_and_reported(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image": _png(), "caption": "whole"}, {"image": content, "caption": "damaged"}]
    with caplog.at_level(logging.WARNING):
        pictures = load_pictures(_write(tmp_path / "a.parquet", rows))
    assert pictures.captions == (("whole",),)
    assert pictures.num_skipped == 1
    assert "skipped 1 damaged or captionless rows" in caplog.text
    assert "a.parquet" in caplog.text


@pytest.mark.parametrize("captions", [[], ["", "  "], None])
def test_a_picture_without_words_is_skipped(tmp_path: Path, captions: list[str] | None) -> None:
    rows = [{"image": _png(), "captions": ["whole"]}, {"image": _png(), "captions": captions}]
    pictures = load_pictures(_write(tmp_path / "a.parquet", rows))
    assert (len(pictures), pictures.num_skipped) == (1, 1)


def test_a_truncated_file_costs_its_own_pictures_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image": _png(), "caption": f"number {i}"} for i in range(6)]
    _write(tmp_path / "a.parquet", rows)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        pictures = load_pictures(DataConfig(path=str(tmp_path), image_size_px=8))
    assert len(pictures) == 6
    assert pictures.num_skipped == 1
    assert f"skipping {tmp_path / 'b.parquet'}" in caplog.text


def test_damage_inside_a_file_costs_its_row_group_only(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2000)
    rows = [{"image": _png(), "caption": f"number {i}", "rest": noise} for i in range(8)]
    path = tmp_path / "a.parquet"
    config = _write(path, rows)
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(content)
    pictures = load_pictures(config)
    assert pictures.captions == tuple((f"number {i}",) for i in (0, 1, 2, 3, 6, 7))
    assert pictures.num_skipped == 2


def test_missing_paths_are_named_by_their_field(tmp_path: Path) -> None:
    gone = tmp_path / "gone.parquet"
    with pytest.raises(ConfigError, match=r"data\.path: nothing at .*gone.*NAME\.txt"):
        load_pictures(DataConfig(path=str(gone)))
    with pytest.raises(ConfigError, match=r"data\.path: no captioned picture in"):
        load_pictures(DataConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"data\.heldout_path: nothing at .*gone"):
        load_heldout(DataConfig(heldout_path=str(gone)))
    with pytest.raises(ConfigError, match=r"data\.num_shapes: num_shapes must be in 1\.\."):
        load_pictures(DataConfig(num_shapes=0))


def test_a_file_without_one_good_row_is_refused(tmp_path: Path) -> None:
    config = _write(tmp_path / "a.parquet", [{"image": b"x", "caption": "x"}])
    with pytest.raises(ConfigError, match=r"a\.parquet: no readable picture"):
        load_pictures(config)


def test_styles_and_concepts_choose(tmp_path: Path) -> None:
    rows = [
        {"image": _png(), "caption": f"{name}, {style}", "name": name, "style": style}
        for name in ("rose", "tulip")
        for style in ("flat", "3d")
    ]
    pictures = load_pictures(_write(tmp_path / "a.parquet", rows))
    flat = filter_pictures(pictures, DataConfig(styles=("flat",)))
    assert flat.captions == (("rose, flat",), ("tulip, flat",))
    one = filter_pictures(pictures, DataConfig(styles=("3d",), concepts=("tulip", "oak")))
    assert one.captions == (("tulip, 3d",),)
    with pytest.raises(ConfigError, match=r"data\.styles and data\.concepts leave no picture"):
        filter_pictures(pictures, DataConfig(concepts=("oak",)))


def test_captions_that_do_not_name_the_concept_are_dropped(tmp_path: Path) -> None:
    rows = [
        {"image": _png(), "captions": ["a Rose", "a red flower"], "name": "rose"},
        {"image": _png(), "captions": ["a flower"], "name": "tulip"},
    ]
    config = _write(tmp_path / "a.parquet", rows)
    named = DataConfig(path=config.path, image_size_px=8, num_other_captions=0)
    # A picture none of whose captions names it keeps them: better than none.
    assert load_pictures(named).captions == (("a Rose",), ("a flower",))
    assert load_pictures(config).captions[0] == ("a Rose", "a red flower")


def test_heldout_pictures_are_filtered_like_the_others(tmp_path: Path) -> None:
    rows = [{"image": _png(), "caption": s, "style": s} for s in ("flat", "3d")]
    path = _write(tmp_path / "a.parquet", rows).path
    heldout = load_heldout(DataConfig(heldout_path=path, image_size_px=8, styles=("3d",)))
    assert heldout is not None
    assert heldout.captions == (("3d",),)
    assert load_heldout(DataConfig()) is None


def test_probe_prompts_spread_over_the_set() -> None:
    pictures = load_pictures(DataConfig(num_shapes=12, image_size_px=8))
    prompts = probe_prompts(pictures, 3)
    assert prompts == [pictures.captions[i][-1] for i in (0, 4, 8)]
    assert len(probe_prompts(pictures, 100)) == 12


def test_pixels_come_back_exactly() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    scaled_BCHW = to_model_range(torch.from_numpy(every))
    assert scaled_BCHW.shape == (1, 3, 16, 16)
    assert (scaled_BCHW.min(), scaled_BCHW.max()) == (-1.0, 1.0)
    assert np.array_equal(to_uint8(scaled_BCHW), every)
    beyond = torch.tensor([-3.0, 3.0, 0.5]).view(1, 3, 1, 1)
    assert to_uint8(beyond).flatten().tolist() == [0, 255, 191]


def test_weights_that_leave_nothing_are_refused() -> None:
    pictures = load_pictures(DataConfig(num_shapes=4, image_size_px=8))
    with pytest.raises(ConfigError, match=r"data\.rare_group_weight 0 leaves no picture"):
        for_training(pictures, DataConfig(rare_groups=("single",), rare_group_weight=0.0))
