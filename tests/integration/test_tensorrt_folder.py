"""A folder of plans over its life: kept, replaced, damaged, waited for, cancelled.

The graphs have a few nodes each, so that the real compiler makes a plan in half a second.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from micro_bundle import write_micro_bundle

from engines.__main__ import main
from engines.build import Target, build_engines
from engines.compiler import Compiler, attach_timings, timings_of
from engines.errors import BackendError, PlanError
from engines.plans import ENGINES_FILE, EngineList, load_plan
from engines.profiles import PACKAGES, BatchRange, EngineKey, engine_key, stage_graphs
from engines.progress import Lines
from engines.spec import STAGES, ModelSpec, sha256_of

trt: Any = pytest.importorskip("tensorrt_rtx")

TARGET = Target("tensorrt_rtx", "SM89", (BatchRange(min=1, opt=4, max=8), BatchRange.of(2)))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three graphs of a few nodes; shared, like its plans: a test works on a copy."""
    return write_micro_bundle(tmp_path_factory.mktemp("micro") / "bundle")


@pytest.fixture(scope="session")
def plans(bundle: Path) -> Path:
    folder = bundle.parent / "plans"
    build_engines(bundle, folder, TARGET)
    return folder


def _keys(bundle: Path, batch: BatchRange) -> list[EngineKey]:
    """What a backend would ask for."""
    spec = ModelSpec.load(bundle)
    platform = Compiler("tensorrt_rtx", "SM89").platform
    return [
        engine_key(graph, spec.sizes_px, platform, batch) for graph in stage_graphs(bundle, spec)
    ]


def test_a_backend_finds_the_plans_of_its_bundle_and_no_others(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    keys = _keys(bundle, BatchRange.of(2))
    assert [key.stage for key in keys] == list(STAGES)
    for key in keys:
        record = EngineList.load(plans).find(key)
        assert record is not None
        assert load_plan(plans, key) == (plans / record.file).read_bytes()
        assert [str(batch) for batch in EngineList.load(plans).batches(key)] == ["2", "1:4:8"]
    wider = write_micro_bundle(tmp_path / "wider", num_channels=16)
    (denoise,) = (key for key in _keys(wider, BatchRange.of(2)) if key.stage == "denoise")
    with pytest.raises(PlanError, match="holds denoise plans for another graph"):
        load_plan(plans, denoise)
    trained = write_micro_bundle(tmp_path / "trained", seed=1)
    for key in _keys(trained, BatchRange.of(2)):
        with pytest.raises(PlanError, match=f"holds {key.stage} plans for another set of weights"):
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
    with pytest.raises(PlanError, match=r"is damaged .* set aside"):
        load_plan(folder, key)
    build_engines(bundle, folder, TARGET)
    assert len(load_plan(folder, key)) > 1000


def test_a_damaged_list_and_leavings_of_dead_builds_are_cleared_away(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    (folder / ENGINES_FILE).write_text("{")
    (folder / "text.plan.7.partial").write_bytes(b"half")
    (folder / "mine.plan").write_bytes(b"somebody's own")
    unlisted = sorted(path.name for path in plans.glob("*.plan"))
    lines: list[str] = []
    target = Target("tensorrt_rtx", "SM89", (BatchRange.of(2),))
    records = build_engines(bundle, folder, target, progress=Lines(lines.append))
    assert lines[0] == "removed 1 half-written files of a build that died"
    assert f"{folder / ENGINES_FILE} is damaged" in lines[1]
    assert lines[1].endswith("set aside as engines.json.damaged, building anew")
    removed = [line for line in lines if line.endswith(", which is not listed")]
    assert sorted(removed) == [f"removed {name}, which is not listed" for name in unlisted]
    kept = {"mine.plan", *(record.file for record in records)}
    assert {path.name for path in folder.glob("*.plan")} == kept
    assert EngineList.load(folder).engines == tuple(records)
    assert (folder / f"{ENGINES_FILE}.damaged").read_text() == "{"
    assert not list(folder.glob("*.partial"))


def test_a_plan_of_other_weights_takes_the_place_of_the_older_one(
    plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    old = EngineList.load(folder).engines
    records = build_engines(write_micro_bundle(tmp_path / "other", seed=1), folder, TARGET)
    assert set(EngineList.load(folder).engines) == set(records)
    for before, after in zip(old, records, strict=True):
        assert before.key.architecture_sha256 == after.key.architecture_sha256
        assert before.key.weights_sha256 != after.key.weights_sha256
        assert (folder / after.file).is_file() and not (folder / before.file).exists()


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


def test_a_cancelled_compilation_gives_no_plan(bundle: Path) -> None:
    shown: list[tuple[str, float]] = []
    compiler = Compiler("tensorrt_rtx", "SM89")

    def compile_until(fraction: float) -> bytes:
        shown.clear()
        return compiler.compile(
            bundle / "denoise.onnx",
            ModelSpec.load(bundle),
            BatchRange.of(1),
            on_progress=lambda phase, fraction: shown.append((phase, fraction)),
            cancelled=lambda: shown[-1][1] >= fraction,
        )

    with pytest.raises(BackendError, match=r"could not compile .*denoise.onnx: .*[Cc]ancel"):
        compile_until(0.1)
    assert shown[-1][1] < 1 or shown[-1][0] == ""
    assert len(compile_until(2.0)) > 1000
    fractions = [fraction for _, fraction in shown]
    assert fractions == sorted(fractions)
    assert shown[-1] == ("", 1.0)
    assert {"Building engine", "Optimizing graph"} <= {phase for phase, _ in shown}


def test_ctrl_c_ends_a_build_and_leaves_only_whole_plans(bundle: Path, tmp_path: Path) -> None:
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
    assert process.returncode == 130
    assert lines[-2].startswith("denoise batch ")
    assert lines[-2].endswith(": stopping at the next step; Ctrl-C again stops at once")
    assert lines[-1] == "onestep-engines: stopped"
    listed = EngineList.load(plans).engines
    assert [str(record.key.batch) for record in listed[:5]] == ["1", "2", "4", "8", "16"]
    assert len(listed) < 15
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


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="refitting runs on a GPU")
@pytest.mark.parametrize("package", PACKAGES)
def test_new_weights_go_into_the_older_plan(package: str, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    plans = tmp_path / "plans"
    target = Target(package, None, (BatchRange.of(2),), refit=True)
    before = build_engines(bundle, plans, target)
    lines: list[str] = []
    trained = write_micro_bundle(tmp_path / "trained", seed=1)
    after = build_engines(trained, plans, target, progress=Lines(lines.append))
    assert [record.made_by for record in after] == ["refit"] * 3, lines
    assert all(new.sha256 != old.sha256 for old, new in zip(before, after, strict=True))
    again = build_engines(bundle, plans, target, progress=Lines(lines.append))
    assert [record.made_by for record in again] == ["refit"] * 3, lines


def test_a_refittable_plan_takes_a_gpu_and_the_command_says_so(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["build", str(bundle), "--compute-capability", "SM89", "--refit"]
    assert main([*arguments, "--out", str(tmp_path / "plans")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"tensorrt_rtx could not compile {bundle / 'text.onnx'}: " in last
    assert last.endswith("takes a GPU to compile: leave --refit out or build there")
    assert EngineList.load(tmp_path / "plans").engines == ()


def test_a_plan_that_cannot_be_refitted_here_is_compiled_instead(
    bundle: Path, plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    records = []
    for record in EngineList.load(folder).engines:
        key = record.key.model_copy(update={"refit": True})
        records.append(record.model_copy(update={"key": key, "fingerprint": key.fingerprint}))
    EngineList(engines=tuple(records)).save(folder)
    trained = write_micro_bundle(tmp_path / "trained", seed=1)
    target = Target("tensorrt_rtx", "SM89", (BatchRange.of(2),), refit=True)
    lines: list[str] = []
    with pytest.raises(BackendError, match="could not compile"):
        build_engines(trained, folder, target, progress=Lines(lines.append))
    assert lines[0].startswith("text batch 2: tensorrt_rtx cannot load the older plan: ")
    assert lines[0].endswith("; compiling instead")
    assert lines[1:] == ["text batch 2: compiling"]
    assert EngineList.load(folder).engines == tuple(records)
