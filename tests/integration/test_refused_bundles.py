"""Every way in which a bundle can be damaged or foreign, and the one line that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.errors import BackendError, BundleError, EnginesError
from engines.pipeline import Pipeline
from engines.spec import SPEC_FILE, sha256_of

Damage = Callable[[Path], object]


def _edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / SPEC_FILE
        spec = json.loads(path.read_text())
        change(spec)
        path.write_text(json.dumps(spec))

    return edit


def _sign(folder: Path, name: str) -> None:
    """Write the digest that a file has now into model.json."""

    def sign(spec: dict[str, Any]) -> None:
        for stage in spec["stages"].values():
            if stage["file"] == name:
                stage["sha256"] = sha256_of(folder / name)
        if name in spec["files"]:
            spec["files"][name] = sha256_of(folder / name)

    _edit(sign)(folder)


def _cut(name: str, signed: bool = False) -> Damage:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        if signed:
            _sign(folder, name)

    return cut


def _flip(name: str) -> Damage:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _swap_stages(folder: Path) -> None:
    """The text graph in the place of the decoder, with digests that fit."""
    shutil.copyfile(folder / "text.onnx", folder / "decode.onnx")
    _sign(folder, "decode.onnx")


def _foreign_graph(folder: Path) -> None:
    """A graph with an operator that no runtime knows, with a digest that fits."""
    model = onnx.load(folder / "decode.onnx")
    model.graph.node[0].op_type = "Paint"
    onnx.save(model, folder / "decode.onnx")
    _sign(folder, "decode.onnx")


REFUSED: dict[str, tuple[Damage, type[EnginesError], str]] = {
    "no folder": (shutil.rmtree, BundleError, "no model at FOLDER/model.json: give a bundle"),
    "no model.json": (
        lambda folder: (folder / SPEC_FILE).unlink(),
        BundleError,
        "no model at FOLDER/model.json: give a bundle",
    ),
    "model.json is no JSON": (
        lambda folder: (folder / SPEC_FILE).write_bytes(b"\x00{"),
        BundleError,
        "FOLDER/model.json is damaged or of another version (file: ",
    ),
    "model.json cut short": (
        _cut(SPEC_FILE),
        BundleError,
        "FOLDER/model.json is damaged or of another version (file: ",
    ),
    "another version": (
        _edit(lambda spec: spec.update(format_version=99)),
        BundleError,
        "FOLDER/model.json is damaged or of another version (format_version: ",
    ),
    "a field too many": (
        _edit(lambda spec: spec.update(shader="x")),
        BundleError,
        "(shader: Extra inputs are not permitted): export the bundle again",
    ),
    "a field too few": (
        _edit(lambda spec: spec.pop("latent")),
        BundleError,
        "(latent: Field required): export the bundle again",
    ),
    "a stage too few": (
        _edit(lambda spec: spec["stages"].pop("denoise")),
        BundleError,
        "FOLDER holds no denoise graph: make a bundle with `onestep-engines export`",
    ),
    "a graph above the folder": (
        _edit(lambda spec: spec["stages"]["text"].update(file="../text.onnx")),
        BundleError,
        "../text.onnx lies outside the model's folder",
    ),
    "an absolute tokenizer": (
        _edit(lambda spec: spec.update(tokenizer_file="/etc/passwd")),
        BundleError,
        "/etc/passwd lies outside the model's folder",
    ),
    "a size between latent cells": (
        _edit(lambda spec: spec.update(sizes_px=[[65, 64]])),
        BundleError,
        "size 65x64 is no multiple of latent.downscale",
    ),
    "a graph that is not there": (
        lambda folder: (folder / "decode.onnx").unlink(),
        BundleError,
        "FOLDER/decode.onnx is missing: export or fetch the bundle again",
    ),
    "a graph cut short": (_cut("denoise.onnx"), BundleError, "FOLDER/denoise.onnx is damaged"),
    "a graph with a bit that flipped": (
        _flip("text.onnx"),
        BundleError,
        "FOLDER/text.onnx is damaged (sha256 differs from model.json)",
    ),
    "a signed graph cut short": (
        _cut("denoise.onnx", signed=True),
        BackendError,
        "cannot load FOLDER/denoise.onnx",
    ),
    "a signed graph of another stage": (_swap_stages, BundleError, "FOLDER/decode.onnx takes"),
    "a signed graph of another make": (
        _foreign_graph,
        BackendError,
        "cannot load FOLDER/decode.onnx",
    ),
    "a tokenizer that is not there": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        BundleError,
        "FOLDER/tokenizer.json is missing",
    ),
    "a tokenizer with a bit that flipped": (
        _flip("tokenizer.json"),
        BundleError,
        "FOLDER/tokenizer.json is damaged (sha256 differs from model.json)",
    ),
    "a signed tokenizer cut short": (
        _cut("tokenizer.json", signed=True),
        BundleError,
        "FOLDER/tokenizer.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_damaged_or_foreign_is_refused_in_one_clear_line(
    case: str, bundle: Path, tmp_path: Path
) -> None:
    damage, error_type, message = REFUSED[case]
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    damage(folder)
    with pytest.raises(EnginesError) as caught:
        Pipeline.load(folder)
    assert type(caught.value) is error_type
    assert message.replace("FOLDER", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)
