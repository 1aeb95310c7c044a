"""Going over from one backend to a better one, between two real bundles of small graphs."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_fixtures import write_graph_bundle
from numpy.typing import NDArray

from engines.disk import locked
from engines.errors import BackendError
from engines.pipeline import Pipeline
from engines.runtime import registry
from engines.runtime.base import Arrays, RuntimeOptions, Stages
from engines.runtime.registry import exact_backend, load_stages
from engines.runtime.warming import WarmingStages
from engines.spec import ModelSpec
from engines.tokenizer import Tokenizer

WAIT_S = 30
ONE_THREAD = RuntimeOptions(num_threads=1)


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of the same shapes that draw different pictures."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_graph_bundle(first)
    write_graph_bundle(second, scale=3.0)
    return first, second


def _load(folder: Path) -> Stages:
    return load_stages("onnx", folder, ModelSpec.load(folder), ONE_THREAD)


def _pipeline(folder: Path, stages: Stages) -> Pipeline:
    spec = ModelSpec.load(folder)
    return Pipeline(spec, Tokenizer.load(folder, spec), stages)


def _draw(pipeline: Pipeline, steps: int = 2) -> NDArray[np.uint8]:
    return pipeline.generate(["a", "b"], [1, 2], width=64, height=64, steps=steps).images_BHWC


def _refuse() -> Stages:
    raise BackendError("no plans yet")


def test_pictures_are_the_fallbacks_until_the_better_stages_load(
    bundles: tuple[Path, Path],
) -> None:
    first, second = bundles
    better = replace(_load(second), row_counts=lambda: (7, 1))
    loads: list[Callable[[], Stages]] = [_refuse, _refuse, lambda: better]
    warming = WarmingStages(_load(first), lambda: loads.pop(0)(), lambda: len(loads))
    pipeline = _pipeline(first, warming.stages)
    assert pipeline.row_counts() == (0, 0)
    before, after = (_draw(_pipeline(folder, _load(folder))) for folder in bundles)
    assert not np.array_equal(before, after)

    np.testing.assert_array_equal(_draw(pipeline), before)
    assert [warming.look(), warming.look()] == [False, False]
    np.testing.assert_array_equal(_draw(pipeline), before)
    assert warming.look()
    np.testing.assert_array_equal(_draw(pipeline), after)
    assert pipeline.row_counts() == (7, 1)


def test_nothing_is_loaded_again_before_something_changed(bundles: tuple[Path, Path]) -> None:
    num_loads = 0
    state = "same"

    def load() -> Stages:
        nonlocal num_loads
        num_loads += 1
        raise BackendError("no plans yet")

    warming = WarmingStages(_load(bundles[0]), load, lambda: state)
    warming.look()
    warming.look()
    assert num_loads == 1
    state = "other"
    warming.look()
    assert num_loads == 2


def test_a_batch_is_drawn_by_one_side_from_first_step_to_last(bundles: tuple[Path, Path]) -> None:
    first, second = bundles
    inside, go_on = threading.Event(), threading.Event()
    fallback = _load(first)

    def slow_denoise(*inputs: Any) -> Arrays:
        inside.set()
        assert go_on.wait(WAIT_S)
        return fallback.denoise(*inputs)

    slow = Stages(fallback.text, slow_denoise, fallback.decode)
    warming = WarmingStages(slow, lambda: _load(second))
    pipeline = _pipeline(first, warming.stages)
    drawn: list[NDArray[np.uint8]] = []
    thread = threading.Thread(target=lambda: drawn.append(_draw(pipeline)))
    thread.start()
    assert inside.wait(WAIT_S)
    # The trial of the better stages must not go through the fallback's slow part either.
    assert warming.look()
    go_on.set()
    thread.join(WAIT_S)
    np.testing.assert_array_equal(drawn[0], _draw(_pipeline(first, _load(first))))
    np.testing.assert_array_equal(_draw(pipeline), _draw(_pipeline(second, _load(second))))


def test_better_stages_have_drawn_every_kind_of_batch_before_they_serve(
    bundles: tuple[Path, Path],
) -> None:
    first, second = bundles
    recorded: list[Any] = []

    def recording() -> Stages:
        loaded = _load(second)

        def run(key: Any, body: Any, inputs: Any) -> Any:
            recorded.append((key.timesteps, len(inputs[0])))
            return body(*inputs)

        return Stages(loaded.text, loaded.denoise, loaded.decode, run=run)

    warming = WarmingStages(_load(first), recording)
    pipeline = _pipeline(first, warming.stages)
    for steps in (1, 2, 1):
        _draw(pipeline, steps)
    pipeline.generate(["c"], [3], width=64, height=64, steps=1)
    assert warming.look()
    assert recorded == [((999, 499), 2), ((999,), 2), ((999,), 1)]


def test_stages_that_load_and_cannot_draw_never_serve(bundles: tuple[Path, Path]) -> None:
    first, second = bundles

    def broken() -> Stages:
        loaded = _load(second)

        def fail(*inputs: Any) -> Arrays:
            raise BackendError("the plan failed")

        return Stages(loaded.text, loaded.denoise, fail)

    warming = WarmingStages(_load(first), broken)
    pipeline = _pipeline(first, warming.stages)
    before = _draw(pipeline)
    assert not warming.look()
    np.testing.assert_array_equal(_draw(pipeline), before)


def test_an_encoder_that_only_the_fallback_has_stays(bundles: tuple[Path, Path]) -> None:
    first, second = bundles
    fallback = _load(first)

    def encode(*inputs: Any) -> Arrays:
        return (np.full((len(inputs[0]), 8, 8, 8), 0.5, dtype=np.float32),)

    with_encoder = Stages(fallback.text, fallback.denoise, fallback.decode, encode)
    warming = WarmingStages(with_encoder, lambda: _load(second))
    pipeline = _pipeline(first, warming.stages)
    assert warming.look()
    images = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    drawn = pipeline.generate(["a"], [1], width=64, height=64, steps=1, images_BHWC=images)
    assert drawn.images_BHWC.shape == (1, 64, 64, 3)


def test_the_watcher_outlives_a_failure_of_any_kind(
    bundles: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = bundles
    changed, stop = threading.Event(), threading.Event()
    num_looks = 0

    def load() -> Stages:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 1:
            raise RuntimeError("a fault of ours")
        changed.set()
        return _load(second)

    warming = WarmingStages(_load(first), load, lambda: num_looks)
    with caplog.at_level(logging.ERROR):
        thread = warming.watch(0.01, stop)
        assert changed.wait(WAIT_S)
        stop.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [record.message for record in caplog.records] == ["backend_not_loaded"]


def test_two_names_start_on_the_second_and_go_over_to_the_first(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry's own watch, with a first backend that loads once its list appears."""
    first, second = bundles
    spec = ModelSpec.load(first)

    class Module:
        @staticmethod
        def load_stages(folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
            if not (folder / "engines" / "engines.json").exists():
                raise BackendError("no plans yet")
            served.set()
            return _load(second)

    served = threading.Event()
    real = registry.importlib.import_module
    monkeypatch.setattr(
        registry.importlib,
        "import_module",
        lambda name: Module if name == "engines.runtime.tensorrt" else real(name),
    )
    monkeypatch.setattr(registry, "_LOOK_INTERVAL_S", 0.01)
    stages = load_stages("tensorrt,onnx", first, spec, ONE_THREAD)
    pipeline = _pipeline(first, stages)
    np.testing.assert_array_equal(_draw(pipeline), _draw(_pipeline(first, _load(first))))
    assert not served.is_set()
    (first / "engines").mkdir()
    (first / "engines" / "engines.json").write_text("{}")
    assert served.wait(WAIT_S)
    expected = _draw(_pipeline(second, _load(second)))
    for _ in range(1000):
        if np.array_equal(_draw(pipeline), expected):
            break
    np.testing.assert_array_equal(_draw(pipeline), expected)
    # From now on it loads at once, and nothing has to be watched.
    before = threading.active_count()
    assert load_stages("tensorrt,onnx", first, spec, ONE_THREAD).run is not stages.run
    assert threading.active_count() == before
    shutil.rmtree(first / "engines")


def test_plans_are_taken_up_when_their_build_has_ended(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list grows plan by plan; the first of them would load, and be all that is ever served."""
    first, second = bundles
    spec = ModelSpec.load(first)
    loaded = threading.Event()
    better = _load(second)

    def load(backend: str, folder: Path, *arguments: Any) -> Stages:
        if backend == "tensorrt":
            loaded.set()
        return better

    made: list[WarmingStages] = []
    monkeypatch.setattr(registry, "_load", load)
    monkeypatch.setattr(WarmingStages, "watch", lambda self, *arguments: made.append(self))
    (first / "engines").mkdir()
    with locked(first / "engines", lambda: None):
        load_stages("tensorrt,onnx", first, spec, ONE_THREAD)
        assert not made[0].look()
        assert not loaded.is_set()
    assert made[0].look()  # though the list is as it was
    assert loaded.is_set()
    # One name alone takes what is there.
    loaded.clear()
    with locked(first / "engines", lambda: None):
        load_stages("tensorrt", first, spec, ONE_THREAD)
    assert loaded.is_set()


def test_both_names_must_be_known(tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    spec = ModelSpec.load(bundles[0])
    for names in ("tensorrt,abacus", "abacus,onnx", "onnx,"):
        with pytest.raises(BackendError, match=r"unknown backend '.*': choose one of onnx, torch"):
            load_stages(names, bundles[0], spec, ONE_THREAD)


def test_what_draws_again_in_float32_reads_the_same_folder() -> None:
    assert exact_backend("torch_cuda") == "torch"
    assert exact_backend("torch_cuda,torch") == "torch"
    for backend in ("onnx", "onnx_cuda", "tensorrt", "tensorrt,onnx", "tensorrt,torch_cuda"):
        assert exact_backend(backend) == "onnx"
