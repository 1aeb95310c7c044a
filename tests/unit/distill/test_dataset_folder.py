"""Folders of captioned pictures: the two ways to caption them, and what is left out."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dataset_fixtures import numbered_png, numbers_in, write_folder, write_parquet, write_tar
from PIL import Image

from distill.config import ConfigError, DataConfig
from distill.dataset import Pictures, load_pictures


def _load(folder: Path, **fields: Any) -> Pictures:
    return load_pictures(DataConfig(path=str(folder), image_size_px=8, **fields))


def test_each_line_beside_a_picture_is_a_caption(tmp_path: Path) -> None:
    write_folder(tmp_path / "below", [3, 1, 2])
    (tmp_path / "notes.txt").write_text("no picture of this name")
    pictures = _load(tmp_path)
    assert numbers_in(pictures.images_NHWC) == [1, 2, 3]
    assert pictures.captions[0] == ("number 1", "no. 1")


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp"])
def test_other_forms_of_pictures_are_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / f"a.{suffix}")
    (tmp_path / "a.txt").write_text("\ufeffwhite", encoding="utf-8")
    assert _load(tmp_path).captions == (("white",),)


@pytest.mark.parametrize("key", ["text", "caption", "captions"])
def test_metadata_lines_caption_pictures(tmp_path: Path, key: str) -> None:
    write_folder(tmp_path, [5])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "7.png").write_bytes(numbered_png(7))
    row = {"file_name": "sub/7.png", key: "seven", "name": "seven", "style": "flat", "group": "odd"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n")
    pictures = _load(tmp_path)
    assert numbers_in(pictures.images_NHWC) == [7, 5]
    assert pictures.captions == (("seven",), ("number 5", "no. 5"))
    assert (pictures.names[0], pictures.styles[0], pictures.groups[0]) == ("seven", "flat", "odd")


def test_a_table_captions_pictures(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(numbered_png(7))
    with (tmp_path / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "text"], ["7.png", "seven, of course"]])
    assert _load(tmp_path).captions == (("seven, of course",),)


def test_what_cannot_be_used_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, [1])
    (tmp_path / "alone.png").write_bytes(numbered_png(2))
    (tmp_path / "blank.png").write_bytes(numbered_png(3))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "cut.png").write_bytes(numbered_png(4)[:40])
    (tmp_path / "cut.txt").write_text("cut")
    (tmp_path / "latin.png").write_bytes(numbered_png(5))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / ".hidden.png").write_bytes(b"left by a system")
    lines = ['{"file_name": "gone.png", "text": "gone"}', "{", '{"text": "nameless"}']
    lines.append('{"file_name": "../outside.png", "text": "outside"}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        pictures = _load(tmp_path)
    assert numbers_in(pictures.images_NHWC) == [1]
    assert pictures.num_skipped == 8
    assert "gone.png: cannot be read: No such file" in caplog.text
    assert "row 2 names no file_name" in caplog.text
    assert "row 4 points outside the folder" in caplog.text
    assert "alone.png: no caption: no alone.txt beside it" in caplog.text
    assert "latin.png" not in caplog.text  # the first few only


def test_an_empty_result_names_the_field_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: no captioned picture in .*metadata\.jsonl"):
        _load(tmp_path)
    (tmp_path / "a.png").write_bytes(numbered_png(1))
    with pytest.raises(ConfigError, match=r"a\.png: no caption: no a\.txt beside it.*NAME\.txt"):
        _load(tmp_path)
    (tmp_path / "a.gif").write_bytes(b"GIF")
    with pytest.raises(ConfigError, match=r"a\.gif is of no known form: give a Parquet"):
        load_pictures(DataConfig(path=str(tmp_path / "a.gif")))


def test_the_form_is_seen_from_what_the_folder_holds(tmp_path: Path) -> None:
    for name in ("tars", "parquets", "both"):
        (tmp_path / name).mkdir()
    write_tar(tmp_path / "tars" / "a.tar", [1, 2])
    write_parquet(tmp_path / "parquets" / "a.parquet", [3])
    assert numbers_in(_load(tmp_path / "tars").images_NHWC) == [1, 2]
    assert numbers_in(_load(tmp_path / "parquets").images_NHWC) == [3]
    write_tar(tmp_path / "both" / "a.tar", [1])
    write_parquet(tmp_path / "both" / "a.parquet", [3])
    with pytest.raises(ConfigError, match=r"holds both Parquet and \.tar files: name one"):
        _load(tmp_path / "both")
    assert numbers_in(_load(tmp_path / "both" / "a.tar").images_NHWC) == [1]


def _banner(path: Path, **save: Any) -> None:
    """Twice as wide as high: red, green, green, blue quarters."""
    image = Image.new("RGB", (32, 16), "lime")
    image.paste("red", (0, 0, 8, 16))
    image.paste("blue", (24, 0, 32, 16))
    image.save(path, **save)


def test_pictures_that_are_not_square_are_fitted(tmp_path: Path) -> None:
    _banner(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("banner")
    crop, pad, stretch = (
        _load(tmp_path, fit=fit).images_NHWC[0] for fit in ("crop", "pad", "stretch")
    )
    assert crop[4, 1].tolist() == crop[4, 6].tolist() == [0, 255, 0]
    assert pad[0, 4].tolist() == [255, 255, 255]
    assert pad[4, 0].argmax() == 0 and pad[4, 7].argmax() == 2
    assert stretch[0, 0].argmax() == 0 and stretch[7, 7].argmax() == 2


def test_a_photograph_stands_as_the_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    _banner(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("banner")
    image = _load(tmp_path, fit="stretch").images_NHWC[0]
    assert image[0, 4].argmax() == 0 and image[7, 4].argmax() == 2
