"""Every graph through the real TensorRT-for-RTX parser and builder, which need no GPU."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.__main__ import main
from engines.build import Target, build_engines
from engines.compiler import Compiler, attach_timings, parse_graph, timings_of
from engines.errors import BackendError, BundleError, PlanError
from engines.plans import ENGINES_FILE, EngineList, load_plan
from engines.profiles import BatchRange, EngineKey, engine_key, stage_graphs
from engines.progress import Lines
from engines.spec import STAGES, ModelSpec, sha256_of

trt: Any = pytest.importorskip("tensorrt_rtx")

TARGET = Target("tensorrt_rtx", "SM89", (BatchRange(min=1, opt=4, max=8), BatchRange.of(2)))


@pytest.fixture(scope="session")
def plans(bundle: Path) -> Path:
    folder = bundle.parent / "plans"
    build_engines(bundle, folder, TARGET)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_parser_accepts_every_graph_with_a_free_batch(
    bundle: Path, many_sizes_bundle: Path, stage: str
) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for folder in (bundle, many_sizes_bundle):
        network = parse_graph(trt, builder, folder / f"{stage}.onnx", logger)
        assert network.num_outputs == 1
        for index in range(network.num_inputs):
            assert network.get_input(index).shape[0] == -1
    if stage == "decode":
        assert network.get_output(0).dtype == trt.DataType.UINT8


def test_every_stage_is_compiled_and_listed_with_its_digest(plans: Path) -> None:
    records = EngineList.load(plans).engines
    assert [record.key.stage for record in records] == [name for name in STAGES for _ in range(2)]
    assert [str(record.key.batch) for record in records] == ["1:4:8", "2"] * 3
    for record in records:
        path = plans / record.file
        assert sha256_of(path) == record.sha256
        assert path.stat().st_size == record.size_bytes > 10_000
        assert record.key.platform.package_version == trt.__version__
        assert record.fingerprint == record.key.fingerprint
        assert (record.graph_file, record.made_by) == (f"{record.key.stage}.onnx", "compile")
    assert not list(plans.glob("*.partial"))


def _keys(bundle: Path, batch: BatchRange) -> list[EngineKey]:
    """What a backend would ask for."""
    spec = ModelSpec.load(bundle)
    platform = Compiler("tensorrt_rtx", "SM89").platform
    return [
        engine_key(graph, spec.sizes_px, platform, batch) for graph in stage_graphs(bundle, spec)
    ]


def test_a_backend_finds_the_plans_of_its_bundle_and_no_others(
    bundle: Path, many_sizes_bundle: Path, plans: Path
) -> None:
    for key in _keys(bundle, BatchRange.of(2)):
        record = EngineList.load(plans).find(key)
        assert record is not None
        assert load_plan(plans, key) == (plans / record.file).read_bytes()
        assert [str(batch) for batch in EngineList.load(plans).batches(key)] == ["2", "1:4:8"]
    for key in _keys(many_sizes_bundle, BatchRange.of(2)):
        with pytest.raises(PlanError, match="plans for another set of sizes"):
            load_plan(plans, key)


def test_a_fresh_plan_is_kept_and_a_damaged_or_missing_one_is_built_again(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    before = EngineList.load(folder).engines
    lines: list[str] = []
    progress = Lines(lines.append)
    assert tuple(build_engines(bundle, folder, TARGET, progress=progress)) == before
    assert [line for line in lines if "up to date" in line] == lines

    damaged, missing = folder / before[0].file, folder / before[1].file
    damaged.write_bytes(b"not a plan")
    missing.unlink()
    lines.clear()
    records = build_engines(bundle, folder, TARGET, progress=progress)
    assert [sha256_of(folder / record.file) for record in records] == [
        record.sha256 for record in records
    ]
    assert sum("up to date" in line for line in lines) == 4
    assert f"text batch 1:4:8: {damaged} is damaged, set aside as {damaged.name}.damaged" in lines
    assert f"text batch 2: {missing} is missing" in lines
    assert (folder / f"{damaged.name}.damaged").read_bytes() == b"not a plan"
    assert {record.key for record in EngineList.load(folder).engines} == {r.key for r in before}


def test_a_plan_that_a_backend_refused_is_built_again(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    key = _keys(bundle, BatchRange.of(2))[0]
    record = EngineList.load(folder).find(key)
    assert record is not None
    (folder / record.file).write_bytes(b"not a plan")
    with pytest.raises(PlanError, match="is damaged .* set aside"):
        load_plan(folder, key)
    build_engines(bundle, folder, TARGET)
    assert len(load_plan(folder, key)) > 10_000


def test_a_damaged_list_and_leavings_of_dead_builds_are_cleared_away(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    (folder / ENGINES_FILE).write_text("{")
    (folder / "text.plan.7.partial").write_bytes(b"half")
    lines: list[str] = []
    target = Target("tensorrt_rtx", "SM89", (BatchRange.of(2),))
    records = build_engines(bundle, folder, target, progress=Lines(lines.append))
    assert lines[0] == "removed 1 half-written files of a build that died"
    assert f"{folder / ENGINES_FILE} is damaged" in lines[1]
    assert lines[1].endswith("set aside as engines.json.damaged, building anew")
    assert EngineList.load(folder).engines == tuple(records)
    assert (folder / f"{ENGINES_FILE}.damaged").read_text() == "{"
    assert not list(folder.glob("*.partial"))


def test_a_plan_of_other_weights_takes_the_place_of_the_older_one(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    other = _with_other_weights(bundle, tmp_path / "other", "text")
    old = EngineList.load(folder).engines
    records = build_engines(other, folder, TARGET)
    listed = EngineList.load(folder).engines
    assert set(listed) == set(records)
    for before, after in zip(old, records, strict=True):
        is_text = after.key.stage == "text"
        assert (before.file != after.file) == is_text
        assert before.key.architecture_sha256 == after.key.architecture_sha256
        assert (folder / before.file).is_file() != is_text


def _with_other_weights(bundle: Path, folder: Path, stage: str) -> Path:
    """The same model, trained a little more: one tensor of one stage is another."""
    shutil.copytree(bundle, folder)
    path = folder / f"{stage}.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    array = numpy_helper.to_array(tensor) * 2
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    spec = ModelSpec.load(folder)
    stages = {
        name: entry.model_copy(update={"sha256": sha256_of(folder / entry.file)})
        for name, entry in spec.stages.items()
    }
    spec.model_copy(update={"stages": stages}).save(folder)
    return folder


def test_the_parser_refuses_uint8_inside_a_graph_and_says_where(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["levels"], ["early"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["early"], ["images"], perm=[0, 2, 3, 1]),
    ]
    levels = helper.make_tensor_value_info("levels", TensorProto.FLOAT, [1, 3, 4, 4])
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 4, 4, 3])
    path = tmp_path / "early.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "early", [levels], [images])), path)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    with pytest.raises(BackendError, match=f"tensorrt_rtx refuses {path}: ") as caught:
        parse_graph(trt, trt.Builder(logger), path, logger)
    assert "\n" not in str(caught.value)


def test_builds_into_one_folder_wait_for_each_other(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    inside, go_on = threading.Event(), threading.Event()
    waiting = threading.Event()

    def hold(line: str) -> None:
        inside.set()
        assert go_on.wait(timeout=60)

    def notice(line: str) -> None:
        if "waiting for another build" in line:
            waiting.set()

    first, second = (
        threading.Thread(
            target=build_engines, args=(bundle, folder, TARGET), kwargs={"progress": Lines(write)}
        )
        for write in (hold, notice)
    )
    first.start()
    assert inside.wait(timeout=60)
    second.start()
    assert waiting.wait(timeout=60)
    assert second.is_alive()
    go_on.set()
    first.join(timeout=60)
    second.join(timeout=60)
    assert not first.is_alive() and not second.is_alive()


def test_the_build_command_makes_a_static_plan_per_batch_size(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = tmp_path / "plans"
    arguments = ["build", str(bundle), "--compute-capability", "SM120", "--out"]
    assert main([*arguments, str(plans)]) == 0
    captured = capsys.readouterr()
    printed = captured.out.splitlines()
    assert len(printed) == 15
    assert all("-SM120-b" in line and ".plan: " in line and "built in" in line for line in printed)
    assert captured.err.splitlines().count("denoise batch 16: compiling") == 1
    batches = [record.key.batch for record in EngineList.load(plans).engines]
    assert batches == [BatchRange.of(size) for size in (1, 2, 4, 8, 16)] * 3

    assert main([*arguments, str(plans), "--batch", "2", "--batch", "16", "--batch", "2"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert all("is up to date" in line for line in captured.err.splitlines())

    assert main([*arguments, str(bundle / "model.json" / "plans")]) == 2
    assert str(bundle / "model.json") in capsys.readouterr().err


def test_a_model_that_was_never_exported_is_refused(torch_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no text graph"):
        build_engines(torch_folder, tmp_path / "plans", TARGET)


def test_the_local_gpu_is_asked_for_its_capability(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    local = Target("tensorrt_rtx", None, TARGET.batches)
    with pytest.raises(BackendError, match=r"no GPU found here: give --compute-capability"):
        build_engines(bundle, tmp_path / "plans", local)


def test_weights_beside_the_graph_are_found(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "denoise.onnx"
    onnx.save(
        onnx.load(bundle / "denoise.onnx"),
        path,
        save_as_external_data=True,
        location="denoise.onnx.data",
        size_threshold=0,
    )
    spec = ModelSpec.load(bundle)
    batch = BatchRange.of(1)
    compiler = Compiler("tensorrt_rtx", "SM89")
    inside = compiler.compile(bundle / "denoise.onnx", spec, batch)
    assert len(compiler.compile(path, spec, batch)) == pytest.approx(len(inside), rel=0.01)
    (tmp_path / "denoise.onnx.data").unlink()
    with pytest.raises(BackendError, match=f"tensorrt_rtx refuses {path}"):
        compiler.compile(path, spec, batch)


def test_a_cancelled_compilation_gives_no_plan(bundle: Path) -> None:
    shown: list[tuple[str, float]] = []
    compiler = Compiler("tensorrt_rtx", "SM89")

    def compile_until(fraction: float) -> bytes:
        shown.clear()
        return compiler.compile(
            bundle / "decode.onnx",
            ModelSpec.load(bundle),
            BatchRange.of(1),
            on_progress=lambda phase, fraction: shown.append((phase, fraction)),
            cancelled=lambda: shown[-1][1] >= fraction,
        )

    with pytest.raises(BackendError, match="could not compile .*decode.onnx: .*[Cc]ancel"):
        compile_until(0.1)
    assert shown[-1][1] < 1 or shown[-1][0] == ""
    assert len(compile_until(2.0)) > 10_000
    fractions = [fraction for _, fraction in shown]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {"Building engine", "Optimizing graph"} <= {phase for phase, _ in shown}


@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_ctrl_c_ends_a_build_and_leaves_only_whole_plans(
    bundle: Path, tmp_path: Path, num_interrupts: int
) -> None:
    plans = tmp_path / "plans"
    command = [sys.executable, "-m", "engines", "build", str(bundle), "--out", str(plans)]
    command += ["--compute-capability", "SM89"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.strip())
            if line.startswith("denoise batch 1: compiling"):
                process.send_signal(signal.SIGINT)
            if num_interrupts == 2 and "Ctrl-C again" in line:
                process.send_signal(signal.SIGINT)
    assert "denoise batch 1: stopping at the next step; Ctrl-C again stops at once" in lines
    assert process.returncode == (130 if num_interrupts == 1 else -signal.SIGINT)
    assert (lines[-1] == "onestep-engines: stopped") == (num_interrupts == 1)
    listed = EngineList.load(plans).engines
    assert [str(record.key.batch) for record in listed] == ["1", "2", "4", "8", "16"]
    kept = {record.file for record in listed}
    assert {path.name for path in plans.iterdir()} == {*kept, ENGINES_FILE, ".lock"}
    assert all(sha256_of(plans / record.file) == record.sha256 for record in listed)


@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
def test_a_timing_cache_goes_in_and_comes_out(bundle: Path) -> None:
    """Over the calls that both packages share; this one warns that it measures nothing."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    config = trt.Builder(logger).create_builder_config()
    attach_timings(config, b"")
    empty = timings_of(config)
    assert empty
    for given in (empty, b"not a cache", empty[: len(empty) // 2]):
        attach_timings(config, given)
        assert timings_of(config) == empty
