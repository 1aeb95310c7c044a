"""check.json is obeyed; what it does not fit is refused, what it lacks is let through."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from engines_fixtures import tiny_spec
from pydantic import ValidationError

from engines import pipeline
from engines.errors import BundleError, ParityError
from engines.pipeline import _choose
from engines.spec import CHECK_FILE, Configuration, ModelSpec, StageFile
from engines.tune import passed, per_picture_ms
from engines.verdicts import Verdict, Verdicts, fingerprint, package_versions, require_passed

ONNX = Configuration(backend="onnx", precision="float32")
INT8 = Configuration(backend="openvino", precision="int8")


def _graph(name: str, digest: str = "0") -> StageFile:
    return StageFile(file=name, sha256=digest * 64, size_bytes=1)


def _spec(**changes: Any) -> ModelSpec:
    stages = {stage: _graph(f"{stage}.onnx") for stage in ("text", "denoise", "decode")}
    fields: dict[str, Any] = {
        "stages": stages,
        "variants": {"int8": {"decode": _graph("decode.int8.onnx")}},
    }
    return tiny_spec(**(fields | changes))


def _verdict(one: Configuration, spec: ModelSpec, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "backend": one.backend,
        "precision": one.precision,
        "fingerprint": fingerprint(spec, one.precision),
        "reference": "torch float32",
        "packages": package_versions(one.backend),
        "stages": {},
        "pictures": (),
        "failures": (),
    }
    return Verdict(**(fields | changes))


def test_what_passed_is_loaded_and_what_was_never_checked_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = _spec()
    Verdicts().having(_verdict(ONNX, spec)).save(tmp_path)
    with caplog.at_level(logging.INFO, "onestep.engines"):
        require_passed(tmp_path, spec, ONNX)
        assert caplog.messages == []
        require_passed(tmp_path, spec, INT8)
    assert "openvino int8 was never checked" in caplog.text


def test_what_failed_is_refused_unless_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = _spec()
    failed = _verdict(INT8, spec, failures=("decode stage: mean error 0.9",))
    Verdicts().having(_verdict(ONNX, spec)).having(failed).save(tmp_path)
    require_passed(tmp_path, spec, ONNX)
    with pytest.raises(ParityError, match=r"openvino int8 failed its check \(decode stage: mean"):
        require_passed(tmp_path, spec, INT8)
    require_passed(tmp_path, spec, INT8, allow_failed=True)
    assert "failed its check" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": {"int8": {"decode": _graph("decode.int8.onnx", "1")}}},
        {"student_timesteps": {1: (998,)}},
        {"files": {"tokenizer.json": "2" * 64}},
    ],
)
def test_a_verdict_on_other_graphs_is_refused_unless_allowed(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    Verdicts().having(_verdict(INT8, _spec())).save(tmp_path)
    with pytest.raises(BundleError, match="openvino int8 is of other graphs than the bundle's"):
        require_passed(tmp_path, _spec(**changes), INT8)
    require_passed(tmp_path, _spec(**changes), INT8, allow_failed=True)


def test_another_precision_does_not_touch_a_verdict(tmp_path: Path) -> None:
    Verdicts().having(_verdict(ONNX, _spec())).save(tmp_path)
    require_passed(tmp_path, _spec(variants={}), ONNX)


def test_other_versions_are_said_and_let_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Verdicts().having(_verdict(ONNX, _spec(), packages={"onnxruntime": "0.1"})).save(tmp_path)
    with caplog.at_level(logging.INFO, "onestep.engines"):
        require_passed(tmp_path, _spec(), ONNX)
    assert "checked with other versions" in caplog.text


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / CHECK_FILE).write_text('{"verdicts": 3}')
    with pytest.raises(BundleError, match=r"check.json is damaged \(verdicts.*delete it"):
        require_passed(tmp_path, _spec(), ONNX)


def test_model_json_cannot_list_what_is_written_after_it() -> None:
    with pytest.raises(ValidationError, match=r"check\.json is written after the bundle"):
        _spec(files={CHECK_FILE: "0" * 64})


def test_a_newer_verdict_replaces_the_older_one() -> None:
    spec = _spec()
    failed = _verdict(ONNX, spec, failures=("x",))
    both = Verdicts().having(failed).having(_verdict(INT8, spec)).having(_verdict(ONNX, spec))
    assert [(v.backend, v.is_passed) for v in both.verdicts] == [("openvino", True), ("onnx", True)]


def test_a_preference_needs_its_graphs() -> None:
    with pytest.raises(ValidationError, match="preferred: there are no int8 graphs"):
        _spec(variants={}, preferred=(INT8,))


def test_the_first_preference_that_is_installed_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_int8 = Configuration(backend="onnx", precision="int8")
    spec = _spec(preferred=(INT8, onnx_int8))
    assert _choose(spec, None, None) == INT8
    monkeypatch.setattr(pipeline, "is_installed", lambda name: name != "openvino")
    assert _choose(spec, None, None) == onnx_int8
    assert "openvino, which is not installed" in caplog.text
    assert _choose(_spec(preferred=(INT8,)), None, None) == ONNX


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [("onnx", None, ONNX), ("openvino", "int8", INT8), (None, "float32", ONNX)],
)
def test_what_is_asked_outweighs_the_preference(
    backend: str | None, precision: Any, expected: Configuration
) -> None:
    spec = _spec(preferred=(Configuration(backend="openvino", precision="float32"),))
    assert _choose(spec, backend, precision) == expected


def test_only_what_passed_with_these_graphs_and_is_installed_is_timed(tmp_path: Path) -> None:
    spec = _spec()
    onnx_int8 = Configuration(backend="onnx", precision="int8")
    verdicts = Verdicts().having(_verdict(ONNX, spec))
    verdicts = verdicts.having(_verdict(INT8, spec, failures=("too far",)))
    verdicts = verdicts.having(_verdict(onnx_int8, spec, fingerprint="of older graphs"))
    abacus = Configuration(backend="abacus", precision="float32")
    verdicts.having(_verdict(abacus, spec)).save(tmp_path)
    assert passed(tmp_path, spec) == [ONNX]


def test_the_order_weighs_batch_sizes_alike() -> None:
    # 2 ms and 8 ms a picture: their geometric mean is 4.
    assert per_picture_ms({1: 2.0, 8: 64.0}) == pytest.approx(4.0)
