"""What bench draws, in which order, and what it makes of the times."""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from engines_fixtures import tiny_spec
from onnx import TensorProto, helper

from engines.bench.chart import draw, require_drawable
from engines.bench.machine import PeakMemory, describe_machine
from engines.bench.measure import Configuration, Device, Plan, Stopwatch
from engines.bench.peaks import Sizes, better_of, cpu_peaks, drift
from engines.bench.report import Subject, bench
from engines.bench.statistics import median, quantile, speed_ratio
from engines.bench.table import table
from engines.errors import BackendError
from engines.pipeline import Generated, Pipeline
from engines.roofline import Peaks
from engines.spec import STAGES, ModelSpec, StageFile

PLAN = Plan((1, 4), (64, 64), num_runs=5, num_warm_up=2)
# A floor of 1 s per multiply-add pair of the graphs below, and free memory.
PEAKS = Peaks(flops_per_s=2.0, bytes_per_s=1e30, float_bytes=4, how="by hand")


class NotingPipeline(Pipeline):
    """Draws black pictures after a pause, and notes what it was asked for."""

    def __init__(self, name: str, log: list[tuple[str, list[str], list[int]]]) -> None:
        self._name, self._log = name, log

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, width: int, height: int, steps: int
    ) -> Generated:
        self._log.append((self._name, list(prompts), list(seeds)))
        time.sleep(0.001)
        images = np.zeros((len(seeds), height, width, 3), dtype=np.uint8)
        return Generated(images, {"text": 0.5, "denoise": 2.0, "decode": 1.0})


def _peaks(device: Device, num_threads: int | None) -> Peaks:
    return PEAKS


@pytest.fixture
def counted_bundle(tmp_path: Path) -> Path:
    """Graphs in which every picture costs 3 multiply-adds."""
    stages = {}
    for stage in STAGES:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph(
            [node],
            stage,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [helper.make_tensor("w", TensorProto.FLOAT, [3, 1], [1.0, 1.0, 1.0])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        onnx.save(model, tmp_path / f"{stage}.onnx")
        stages[stage] = StageFile(file=f"{stage}.onnx", sha256="0", size_bytes=1)
    tiny_spec(stages=stages).save(tmp_path)
    return tmp_path


def _subject(bundle: Path, *names: str) -> Subject:
    spec = ModelSpec.load(bundle)
    configurations = [Configuration(n, lambda n=n: NotingPipeline(n, [])) for n in names]
    return Subject(spec, bundle, configurations, num_threads=1)


def test_no_prompt_and_no_seed_comes_twice_to_a_pipeline() -> None:
    log: list[tuple[str, list[str], list[int]]] = []
    stopwatch = Stopwatch({"a": NotingPipeline("a", log)}, PLAN)
    for batch_size in PLAN.batch_sizes:
        assert len(stopwatch.measure(batch_size)["a"]) == PLAN.num_runs
    prompts = [prompt for _, batch, _ in log for prompt in batch]
    seeds = [seed for _, _, batch in log for seed in batch]
    num_pictures = (1 + 4) * (PLAN.num_runs + PLAN.num_warm_up)
    assert len(set(prompts)) == len(prompts) == num_pictures
    assert len(set(seeds)) == len(seeds) == num_pictures
    # A tokenizer of 12 tokens, one per letter, still tells them apart.
    assert len({prompt[:10] for prompt in prompts}) == num_pictures


def test_configurations_take_turns_in_an_order_that_changes() -> None:
    log: list[tuple[str, list[str], list[int]]] = []
    pipelines = {name: NotingPipeline(name, log) for name in "abc"}
    plan = Plan((2,), (64, 64), num_runs=20, num_warm_up=0)
    ticks: list[int] = []
    Stopwatch(pipelines, plan).measure(2, lambda: ticks.append(1))
    assert len(ticks) == len(log) == 60
    rounds = [log[start : start + 3] for start in range(0, 60, 3)]
    orders = {tuple(name for name, _, _ in calls) for calls in rounds}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) > 3
    # One round asks the same of all.
    assert all(calls[0][1:] == calls[1][1:] == calls[2][1:] for calls in rounds)


def test_the_p99_of_few_runs_is_the_slowest() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile(list(range(1, 201)), 0.99) == 198
    assert median([1.0, 2.0, 10.0, 3.0]) == 2.5


def test_a_ratio_says_how_sure_it_is() -> None:
    random = np.random.default_rng(1)
    other = random.normal(100, 5, 200)
    twice = speed_ratio(list(2 * random.normal(100, 5, 200)), list(other))
    assert twice.low is not None
    assert twice.high is not None
    assert twice.low < 2.0 < twice.high
    assert twice.high - twice.low < 0.1
    few = speed_ratio(list(2 * random.normal(100, 5, 8)), list(other[:8]))
    assert few.low is not None
    assert few.high is not None
    assert few.high - few.low > twice.high - twice.low
    assert speed_ratio([4.0], [2.0]) == speed_ratio([4.0], [2.0], seed=5)
    assert (speed_ratio([4.0], [2.0]).value, speed_ratio([4.0], [2.0]).low) == (2.0, None)


def test_a_disturbance_that_meets_a_whole_round_cancels() -> None:
    slow = np.random.default_rng(2).uniform(1, 10, 40)
    ratio = speed_ratio(list(3 * slow), list(slow))
    assert ratio.low == pytest.approx(3.0)
    assert ratio.high == pytest.approx(3.0)


def test_the_result_counts_pictures_and_shares_and_is_json(counted_bundle: Path) -> None:
    plan = Plan((1, 4), (64, 64), steps=2, num_runs=5)
    result = bench(_subject(counted_bundle, "onnx"), plan, measure_peaks=_peaks)
    assert json.loads(json.dumps(result)) == result
    assert result["not_counted"] is None
    assert result["ratios"] == []
    (configuration,) = result["configurations"]
    assert [row["batch_size"] for row in configuration["batches"]] == [1, 4]
    for row in configuration["batches"]:
        size = row["batch_size"]
        assert row["median_ms"] <= row["p99_ms"]
        assert row["images_per_s"] == pytest.approx(size * 1000 / row["median_ms"], rel=0.01)
        # 3 multiply-adds per picture for text, 3 for each of two steps, 3 for decode.
        assert row["floor_ms"] == pytest.approx(size * 12 * 1000)
        assert row["roofline_share"] == pytest.approx(row["floor_ms"] / row["median_ms"], rel=1e-3)
        assert row["stages"]["denoise"]["floor_ms"] == pytest.approx(size * 6 * 1000)
        assert row["stages"]["denoise"]["median_ms"] == 2.0
        assert row["stages"]["denoise"]["roofline_share"] == pytest.approx(size * 3000)
        assert row["peak_memory_bytes"]["rss"] > 10_000_000
    assert result["machine"]["versions"]["numpy"] == np.__version__
    assert len(result["machine"]["load_average_after"]) == 3


def test_several_configurations_are_compared_and_share_their_memory(counted_bundle: Path) -> None:
    result = bench(_subject(counted_bundle, "a", "b", "c"), PLAN, measure_peaks=_peaks)
    assert [(row["name"], row["reference"], row["batch_size"]) for row in result["ratios"]] == [
        ("b", "a", 1),
        ("c", "a", 1),
        ("b", "a", 4),
        ("c", "a", 4),
    ]
    for row in result["ratios"]:
        assert row["low"] <= row["value"] <= row["high"]
    rows = [row for entry in result["configurations"] for row in entry["batches"]]
    assert all(row["peak_memory_bytes"] is None for row in rows)
    text = table(result)
    assert "times as fast as a, 95 % interval" in text
    assert "b                        batch   4" in text


def test_a_folder_without_graphs_is_measured_and_has_no_roofline(tmp_path: Path) -> None:
    tiny_spec().save(tmp_path)
    result = bench(_subject(tmp_path, "torch"), PLAN, measure_peaks=_peaks)
    assert "holds no text graph" in result["not_counted"]
    row = result["configurations"][0]["batches"][0]
    assert row["median_ms"] > 0
    assert row["roofline_share"] is row["floor_ms"] is row["gflop"] is None
    assert "no roofline: " in table(result)


def test_peaks_that_move_are_called_out(counted_bundle: Path) -> None:
    rates = iter((100.0, 150.0))

    def moving(device: Device, num_threads: int | None) -> Peaks:
        return Peaks(next(rates), 1.0, 4, "by hand")

    result = bench(_subject(counted_bundle, "onnx"), PLAN, measure_peaks=moving)
    assert result["peaks"]["cpu"]["flops_per_s"] == 150.0
    assert result["peaks"]["cpu"]["drift"] == pytest.approx(1 / 3, abs=1e-3)
    assert "changed by 33% meanwhile: the machine was not quiet" in table(result)
    calm = bench(_subject(counted_bundle, "onnx"), PLAN, measure_peaks=_peaks)
    assert "not quiet" not in table(calm)


def test_each_rate_takes_its_better_measurement() -> None:
    first, second = Peaks(10.0, 4.0, 4, "x"), Peaks(5.0, 5.0, 4, "x")
    assert better_of(first, second) == Peaks(10.0, 5.0, 4, "x")
    assert drift(first, second) == 1.0
    assert drift(second, second) == 0.0


def test_a_cpus_peaks_are_measured() -> None:
    peaks = cpu_peaks(1, Sizes(product=256, copy_bytes=2**22))
    assert 1e8 < peaks.flops_per_s < 1e14
    assert 1e7 < peaks.bytes_per_s < 1e13
    assert "256 x 256" in peaks.how
    assert "4 MiB by 1 threads" in peaks.how


def test_peak_memory_sees_what_was_freed_and_forgets_it() -> None:
    watch = PeakMemory()
    if watch.read()["rss_since"] == "start":
        pytest.skip("the system cannot forget earlier memory use")
    before = watch.read()["rss"]
    # Fresh pages from the system: an allocator may hand out memory that is resident already.
    with mmap.mmap(-1, 2**25) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert watch.read()["rss"] - before > 2**24
    watch.reset()
    assert watch.read()["rss"] - before < 2**23


def test_a_machine_is_described() -> None:
    machine = describe_machine(2)
    assert machine["num_cores"] >= 1
    assert machine["num_threads"] == 2
    assert machine["cpu"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot_shows_configurations_and_roofline(
    suffix: str, counted_bundle: Path, tmp_path: Path
) -> None:
    result = bench(_subject(counted_bundle, "onnx", "other"), PLAN, measure_peaks=_peaks)
    path = tmp_path / f"plot{suffix}"
    draw(result, path)
    content = path.read_bytes()
    if suffix == ".png":
        assert content.startswith(b"\x89PNG")
        return
    for word in ("onnx", "other", "roofline", "pictures per second", "batch size"):
        assert f">{word}<" in content.decode()


def test_a_plot_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"--plot: .*plot\.pdf must end in \.svg or \.png"):
        require_drawable(tmp_path / "plot.pdf")
