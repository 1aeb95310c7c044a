"""Every graph through the real TensorRT-for-RTX parser and builder, which need no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engines.build import Target, build_engines
from engines.compiler import Compiler, parse_graph
from engines.errors import BackendError, BundleError
from engines.plans import EngineList
from engines.profiles import BatchRange
from engines.spec import STAGES, ModelSpec, sha256_of

trt: Any = pytest.importorskip("tensorrt_rtx")

TARGET = Target("tensorrt_rtx", "SM89", (BatchRange(min=1, opt=4, max=8), BatchRange.of(2)))


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


def test_every_stage_is_compiled_and_listed_with_its_digest(bundle: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    build_engines(bundle, plans, TARGET)
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


def _gpu_of(number: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver's program tell of another GPU."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho {number}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(("number", "name"), [("9.0", "SM90"), ("10.0", "SM100"), ("6.1", "SM61")])
def test_a_gpu_that_could_not_load_the_plans_is_refused_before_a_build(
    number: str, name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu_of(number, tmp_path, monkeypatch)
    local = Target("tensorrt_rtx", None, TARGET.batches)
    with pytest.raises(BackendError, match=f"does not run on {name},.*--package tensorrt$"):
        build_engines(bundle, tmp_path / "plans", local)
    assert not (tmp_path / "plans").exists()


@pytest.mark.parametrize(
    ("number", "name"), [("8.9", "SM89"), ("12.1", "SM121"), ("13.0", "SM130")]
)
def test_a_gpu_of_the_list_or_newer_is_compiled_for(
    number: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu_of(number, tmp_path, monkeypatch)
    assert Compiler("tensorrt_rtx", None).platform.compute_capability == name


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
