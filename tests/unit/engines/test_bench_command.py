"""onestep-engines bench: what its words mean, and what is refused before anything is measured."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from engines_fixtures import tiny_spec

from engines.__main__ import main
from engines.bench.chart import require_drawable
from engines.bench.command import Options, configuration
from engines.errors import BackendError
from engines.pipeline import Pipeline
from engines.runtime.registry import BACKENDS


def _options(bundle: Path, torch_folder: Path | None = None) -> Options:
    return Options(bundle, ["onnx"], torch_folder, [1], 1, 1, 1)


def test_every_backend_is_a_configuration(tmp_path: Path) -> None:
    for backend in BACKENDS:
        entry = configuration(backend, _options(tmp_path))
        is_on_gpu = "cuda" in backend or "tensorrt" in backend
        assert (entry.name, entry.device) == (backend, "cuda" if is_on_gpu else "cpu")


@pytest.mark.parametrize(
    ("backend", "given", "read"),
    [("onnx", "other", "bundle"), ("torch", "other", "other"), ("torch", None, "bundle")],
)
def test_the_torch_backend_reads_the_torch_folder(
    backend: str, given: str | None, read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options(tmp_path / "bundle", tmp_path / given if given else None)
    with pytest.raises(Exception, match=str(tmp_path / read / "model.json")):
        configuration(backend, options).load()


def test_a_precision_reaches_a_pipeline_that_has_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def with_choice(bundle: Path, *, backend: str, num_threads: int | None, precision: str) -> None:
        asked.append((bundle, backend, num_threads, precision))

    monkeypatch.setattr(Pipeline, "load", with_choice)
    entry = configuration("onnx:int8", _options(tmp_path))
    entry.load()
    assert entry.name == "onnx:int8"
    assert asked == [(tmp_path, "onnx", 1, "int8")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--compare", "abacus"],
            f"abacus: unknown backend 'abacus', choose one of {', '.join(BACKENDS)}",
        ),
        (["--compare", "onnx"], "--compare: name each configuration once, got onnx, onnx"),
        (["--steps", "9"], "--steps: the model knows 1..4"),
        (["--plot", "plot.pdf"], "--plot: plot.pdf must end in .svg or .png"),
        (["--plot", "no/where/plot.svg"], "no/where/plot.svg: No such file or directory"),
        (["--json", "no/where.json"], "no/where.json: No such file or directory"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_measuring(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_spec().save(tmp_path)  # holds no graphs: loading it would be the error otherwise
    assert main(["bench", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"onestep-engines: {message}\n"


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name in ("engines.bench.command", "vl_convert"):
            missing = "onnx" if name.startswith("engines") else name
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    assert main(["bench", str(tmp_path)]) == 2
    assert "this command needs onnx: pip install 'onestep[bench]'" in capsys.readouterr().err

    with pytest.raises(BackendError, match=r"--plot needs vl_convert: .*onestep\[bench\]"):
        require_drawable(tmp_path / "plot.svg")
