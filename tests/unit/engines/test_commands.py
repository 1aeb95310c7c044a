"""onestep-engines in a shell's eyes: one clear line, an exit code, never a traceback."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from engines_fixtures import tiny_spec, write_tokenizer

from engines.__main__ import main
from engines.spec import StageFile, sha256_of


@pytest.fixture
def damaged_bundle(tmp_path: Path) -> Path:
    """A bundle whose digests fit and whose graphs are no graphs."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    stages = {}
    for stage in ("text", "denoise", "decode"):
        path = folder / f"{stage}.onnx"
        path.write_bytes(b"no graph at all")
        stages[stage] = StageFile(file=path.name, sha256=sha256_of(path), size_bytes=15)
    files = {"tokenizer.json": sha256_of(folder / "tokenizer.json")}
    tiny_spec(stages=stages, files=files).save(folder)
    return folder


def _only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith("onestep-engines: ")
    return line


@pytest.mark.parametrize("command", ["bench", "build", "check", "quantize", "tune"])
def test_a_missing_bundle_is_one_line_with_the_remedy(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "nowhere")]) == 2
    line = _only_line(capsys)
    assert str(tmp_path / "nowhere" / "model.json") in line
    assert "onestep-engines export" in line


def test_a_graph_that_differs_from_its_digest_is_named(
    damaged_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (damaged_bundle / "denoise.onnx").write_bytes(b"altered")
    assert main(["bench", str(damaged_bundle)]) == 2
    line = _only_line(capsys)
    assert f"{damaged_bundle / 'denoise.onnx'} is damaged" in line


def test_a_graph_that_the_runtime_refuses_is_named(
    damaged_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(damaged_bundle)]) == 2
    assert f"cannot load {damaged_bundle / 'text.onnx'}" in _only_line(capsys)


def test_a_torch_folder_is_no_bundle_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_spec().save(tmp_path)
    assert main(["bench", str(tmp_path)]) == 2
    assert "holds no text graph" in _only_line(capsys)


def test_a_missing_framework_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without_torch(name: str, package: str | None = None) -> object:
        if name == "engines.export":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_torch)
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "needs torch: pip install 'onestep[distill]'" in _only_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "BUNDLE", "--batch", "4:2:8"], "--batch: batch must be MIN <= OPT <= MAX"),
        (
            ["build", "BUNDLE", "--package", "tensorrt", "--compute-capability", "SM89"],
            "--package tensorrt_rtx",
        ),
        (
            ["build", "BUNDLE", "--precision", "float16"],
            "has no float16 graphs, only float32: export it with `--precision float16`",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str],
    message: str,
    damaged_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(damaged_bundle) if word == "BUNDLE" else word for word in arguments]
    assert main(given) == 2
    assert message in _only_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["bench", "x", "--batch", "0"],
        ["quantize", "x", "--stages", "denoise,paint"],
        ["quantize", "x", "--stages", "decode,decode"],
        ["tune", "x", "--rounds", "0"],
        ["export", "x", "--out", "y", "--size", "512"],
        ["export", "x", "--out", "y", "--size", "0x512"],
        ["export", "x", "--out", "y", "--timesteps", "999;499"],
        ["export", "x", "--out", "y", "--precision", "int4"],
        ["pull", "x"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: onestep-engines" in capsys.readouterr().err
