"""Batch ranges, input shapes and the keys of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines_fixtures import tiny_spec
from plans_fixtures import KEY
from pydantic import ValidationError

from engines.errors import BundleError
from engines.profiles import BatchRange, Platform, input_shapes, stage_graphs
from engines.spec import ListedFile, StageFile

RANGE = BatchRange(min=1, opt=4, max=8)


@pytest.mark.parametrize("text", ["8", "1:4:16", "2:2:2"])
def test_a_batch_range_is_read(text: str) -> None:
    batch = BatchRange.parse(text)
    assert batch.min <= batch.opt <= batch.max
    assert BatchRange.parse(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1:2", "4:2:8", "1:8:4", "1:2:3:4", "1.5"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="batch must be"):
        BatchRange.parse(text)


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="min <= opt <= max"):
        BatchRange(min=4, opt=2, max=8)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "decode"},
        {"architecture_sha256": "2" * 64},
        {"weights_sha256": "2" * 64},
        {"platform": Platform(**(KEY.platform.model_dump() | {"package": "tensorrt"}))},
        {"platform": Platform(**(KEY.platform.model_dump() | {"package_version": "1.7.2"}))},
        {"platform": Platform(**(KEY.platform.model_dump() | {"compute_capability": "SM120"}))},
        {"batch": BatchRange(min=1, opt=4, max=16)},
        {"sizes_px": ((64, 64), (128, 64))},
        {"refit": True},
    ],
)
def test_every_difference_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert KEY.model_copy(update=change).fingerprint != KEY.fingerprint
    assert KEY.model_copy().fingerprint == KEY.fingerprint


def test_a_plan_is_refitted_for_other_weights_and_rebuilt_for_anything_else() -> None:
    base = KEY.model_copy(update={"refit": True})
    wanted = base.model_copy(update={"weights_sha256": "3" * 64})
    assert wanted.is_refit_of(base)
    for change in (
        {"architecture_sha256": "3" * 64},
        {"batch": BatchRange.of(3)},
        {"sizes_px": ((128, 64),)},
        {"stage": "decode"},
        {"platform": KEY.platform.model_copy(update={"package_version": "2"})},
    ):
        assert not wanted.model_copy(update=change).is_refit_of(base)
    assert not wanted.is_refit_of(KEY)
    assert not wanted.model_copy(update={"refit": False}).is_refit_of(KEY)


def test_shapes_cover_the_batch_range_and_all_sizes() -> None:
    spec = tiny_spec(sizes_px=((64, 64), (128, 32)))
    shapes = {
        (name, shape): input_shapes(spec, name, shape, RANGE)
        for name, shape in (
            ("input_ids_BL", (-1, 12)),
            ("latents_BChw", (-1, 8, -1, -1)),
            ("images_BHWC", (-1, -1, -1, 3)),
            ("timestep_B", (-1,)),
        )
    }
    assert list(shapes.values()) == [
        ((1, 12), (4, 12), (8, 12)),
        ((1, 8, 4, 8), (4, 8, 8, 8), (8, 8, 8, 16)),
        ((1, 32, 64, 3), (4, 64, 64, 3), (8, 64, 128, 3)),
        ((1,), (4,), (8,)),
    ]


def test_one_batch_and_one_size_make_a_static_plan() -> None:
    shape = (4, 8, 8, 8)
    found = input_shapes(tiny_spec(), "latents_BChw", (-1, 8, -1, -1), BatchRange.of(4))
    assert found == (shape, shape, shape)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("text_embeds_BLD", (-1, -1, 32), "axis L of input text_embeds_BLD is free.*export"),
        ("latents_BChw", (-1, 8, 8), "latents_BChw has 3 axes, its name says 4.*export"),
    ],
)
def test_an_input_that_does_not_say_its_axes_is_named(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        input_shapes(tiny_spec(), name, shape, RANGE)


def test_all_listed_graphs_are_found_and_a_model_without_them_is_refused(tmp_path: Path) -> None:
    stages: Any = {
        stage: StageFile(file=f"{stage}.onnx", sha256="0" * 64, size_bytes=1)
        for stage in ("decode", "text", "denoise")
    }
    graphs = stage_graphs(tmp_path, tiny_spec(stages=stages))
    assert [graph.path.name for graph in graphs] == ["text.onnx", "denoise.onnx", "decode.onnx"]
    with pytest.raises(BundleError, match="holds no text graph"):
        stage_graphs(tmp_path, tiny_spec())


def test_the_graphs_of_a_precision_are_its_own_and_the_bases_where_it_has_none(
    tmp_path: Path,
) -> None:
    stages: Any = {
        stage: StageFile(file=f"{stage}.onnx", sha256="0" * 64, size_bytes=1)
        for stage in ("text", "denoise", "decode", "encode")
    }
    weights = ListedFile(file="half.onnx.data", sha256="7" * 64, size_bytes=1)
    half = StageFile(file="half.onnx", sha256="0" * 64, size_bytes=1, weights=weights)
    spec = tiny_spec(stages=stages, variants={"float16": {"denoise": half}})
    found = [
        (graph.stage, graph.path.name, graph.weights_sha256)
        for graph in stage_graphs(tmp_path, spec, "float16")
    ]
    assert found == [
        ("text", "text.onnx", None),
        ("denoise", "half.onnx", "7" * 64),
        ("decode", "decode.onnx", None),
        ("encode", "encode.onnx", None),
    ]
    assert stage_graphs(tmp_path, spec, "float32") == stage_graphs(tmp_path, spec)
    with pytest.raises(BundleError, match="has no int8 graphs, only float32, float16"):
        stage_graphs(tmp_path, spec, "int8")
