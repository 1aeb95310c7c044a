"""Every graph through the real TensorRT-for-RTX parser and builder, which need no GPU."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engines.__main__ import main
from engines.build import Target, build_engines, parse_graph
from engines.errors import BackendError, BundleError
from engines.profiles import BatchRange, EngineList
from engines.spec import STAGES, sha256_of

trt: Any = pytest.importorskip("tensorrt_rtx")

TARGET = Target("tensorrt_rtx", "SM89", BatchRange(min=1, opt=4, max=8))


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
    assert [record.stage for record in records] == list(STAGES)
    for record in records:
        path = plans / record.file
        assert sha256_of(path) == record.sha256
        assert path.stat().st_size == record.size_bytes > 10_000
        assert record.key.package_version == trt.__version__
        assert record.fingerprint == record.key.fingerprint
    assert not list(plans.glob("*.partial"))


def test_a_fresh_plan_is_kept_and_a_damaged_or_stale_one_is_built_again(
    bundle: Path, plans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plans, tmp_path / "plans"))
    before = EngineList.load(folder).engines
    lines: list[str] = []
    assert tuple(build_engines(bundle, folder, TARGET, report=lines.append)) == before
    assert [line for line in lines if "up to date" in line] == lines

    damaged = folder / before[0].file
    damaged.write_bytes(b"not a plan")
    lines.clear()
    records = build_engines(bundle, folder, TARGET, report=lines.append)
    assert sha256_of(damaged) == records[0].sha256
    assert sum("up to date" in line for line in lines) == 2
    assert len(EngineList.load(folder).engines) == 3


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

    first = threading.Thread(
        target=build_engines, args=(bundle, folder, TARGET), kwargs={"report": hold}
    )
    second = threading.Thread(
        target=build_engines, args=(bundle, folder, TARGET), kwargs={"report": notice}
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


def test_the_build_command_prints_each_plan(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(bundle), "--compute-capability", "SM120", "--batch", "2"]
    assert main([*arguments, "--out", str(tmp_path / "plans")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all("SM120-b2.plan" in line and "built in" in line for line in printed)

    assert main([*arguments, "--out", str(bundle / "model.json" / "plans")]) == 2
    assert str(bundle / "model.json") in capsys.readouterr().err


def test_a_model_that_was_never_exported_is_refused(torch_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no text graph"):
        build_engines(torch_folder, tmp_path / "plans", TARGET)


def test_the_local_gpu_is_asked_for_its_capability(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    local = Target("tensorrt_rtx", None, TARGET.batch)
    with pytest.raises(BackendError, match=r"no GPU found here: give --compute-capability"):
        build_engines(bundle, tmp_path / "plans", local)
