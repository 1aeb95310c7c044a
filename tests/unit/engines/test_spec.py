"""model.json: what it accepts, and one clear line for everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines_fixtures import tiny_spec
from pydantic import ValidationError

from engines.errors import BundleError
from engines.spec import SPEC_FILE, ModelSpec, StageFile, sha256_of


def _written(folder: Path, **changes: Any) -> Path:
    """model.json as JSON with some fields replaced, past the validation of the writer."""
    fields = json.loads(tiny_spec().model_dump_json()) | changes
    (folder / SPEC_FILE).write_text(json.dumps(fields))
    return folder


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = tiny_spec(styles=("flat",))
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec
    assert [path.name for path in tmp_path.iterdir()] == [SPEC_FILE]


def test_a_missing_model_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        ModelSpec.load(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / SPEC_FILE) in str(caught.value)
    assert "export" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "x"}', b"[]", b"\xff\xfe\x00", b"null"])
def test_a_damaged_model_is_one_line_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SPEC_FILE).write_bytes(content)
    with pytest.raises(BundleError, match="damaged or of another version") as caught:
        ModelSpec.load(tmp_path)
    assert str(tmp_path / SPEC_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
        ({"prediction_type": "noise"}, "prediction_type"),
        ({"schedule": {"beta_schedule": "flow"}}, "predict flow or sample"),
        ({"sizes_px": []}, "sizes_px"),
        ({"latent": {"channels": 0, "downscale": 8, "scale": 1.0}}, "latent.channels"),
        ({"student_timesteps": {"1": [1000]}}, "0..999"),
        ({"student_timesteps": {"1": [-1]}}, "0..999"),
        ({"student_timesteps": {"1": [999, 499]}}, "must hold 1"),
        ({"student_timesteps": {"1": [999], "2": [499, 999]}}, "must descend"),
        ({"student_timesteps": {"1": [999], "3": [999, 499, 249]}}, "without a gap"),
        ({"sizes_px": [[60, 64]]}, "60x64"),
        ({"tokenizer_file": "../tokenizer.json"}, "outside"),
        ({"tokenizer_file": "/etc/passwd"}, "outside"),
        ({"files": {"../x": "0"}}, "outside"),
        (
            {"stages": {"text": {"file": "/x.onnx", "sha256": "0", "size_bytes": 1}}},
            "outside",
        ),
        ({"stages": {"upscale": {"file": "x", "sha256": "0", "size_bytes": 1}}}, "stages.upscale"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BundleError) as caught:
        ModelSpec.load(_written(tmp_path, **changes))
    assert field in str(caught.value)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        tiny_spec().name = "other"  # type: ignore[misc] # what the test is about


def test_latent_shape_turns_width_and_height_into_rows_and_columns() -> None:
    spec = tiny_spec(sizes_px=((64, 32),))
    assert spec.latent_shape(64, 32) == (8, 4, 8)
    assert spec.max_steps == 4


def test_verify_accepts_whole_files_and_refuses_changed_or_missing_ones(tmp_path: Path) -> None:
    graph, tokenizer = tmp_path / "text.onnx", tmp_path / "tokenizer.json"
    graph.write_bytes(b"graph")
    tokenizer.write_bytes(b"{}")
    spec = tiny_spec(
        stages={"text": StageFile(file=graph.name, sha256=sha256_of(graph), size_bytes=5)},
        files={tokenizer.name: sha256_of(tokenizer)},
    )
    spec.verify(tmp_path)

    for path in (graph, tokenizer):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"?")
        with pytest.raises(BundleError, match=f"{path} is damaged.*export or fetch"):
            spec.verify(tmp_path)
        path.unlink()
        with pytest.raises(BundleError, match=f"{path} is missing.*export or fetch"):
            spec.verify(tmp_path)
        path.write_bytes(whole)
