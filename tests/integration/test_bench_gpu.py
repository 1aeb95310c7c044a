"""The GPU measurement without a GPU: its shapes, its count, its variants, its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engines_fixtures import tiny_spec
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engines.graph_work import Graph
from engines.runtime.modules import load_modules
from tests.bench import bench_gpu
from tests.bench.gpu_models import SD_TURBO, SDXL_TURBO, Shapes, build, make_inputs, shrunk
from tests.bench.gpu_variants import (
    VARIANTS,
    Effort,
    HostPictures,
    Variant,
    prepare,
    time_variant,
)
from tests.bench.torch_work import count_work

ARGUMENTS = ["--tiny", "--models", "sd-turbo", "--vaes", "tiny", "--steps", "1", "--batch", "1"]


def _millions(module: torch.nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("shapes", "unet", "texts"),
    [(SD_TURBO, 865.91, [340.39]), (SDXL_TURBO, 2567.46, [123.06, 694.66])],
)
def test_the_networks_have_the_size_of_the_public_ones(
    shapes: Shapes, unet: float, texts: list[float]
) -> None:
    model = build(shapes, "kl", "meta", torch.bfloat16)
    assert [_millions(text) for text in model.texts] == texts
    assert _millions(model.unet) == unet
    assert _millions(model.vae) == 83.65
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_count_of_modules_by_hand() -> None:
    torch_like = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.nn.GroupNorm(2, 6)
    ).to("meta")
    work = count_work(lambda: torch_like(torch.zeros(2, 4, 5, 5, device="meta")))
    conv, norm = work.ops
    assert conv.flops == 2 * (2 * 6 * 25) * 4 * 9
    assert conv.num_bytes == 4 * (2 * 4 * 25 + 6 * 4 * 9 + 2 * 6 * 25)
    assert (norm.flops, norm.num_bytes) == (0, 2 * 4 * 2 * 6 * 25)
    query, key = torch.zeros(1, 2, 10, 4, device="meta"), torch.zeros(1, 2, 7, 4, device="meta")
    attend = torch.nn.functional.scaled_dot_product_attention
    (attention,) = count_work(lambda: attend(query, key, value=key)).ops
    assert attention.flops == 2 * (2 * 10) * 7 * (4 + 4)
    assert attention.num_bytes == 4 * 2 * (2 * 10 * 4 + 2 * 7 * 4)


def test_the_two_counts_agree_on_a_whole_unet(bundle: Path, torch_folder: Path) -> None:
    graph = Graph(bundle / "denoise.onnx").count(3, (8, 8))
    unet = load_modules(torch_folder, tiny_spec()).denoise.unet.to("meta")
    with torch.device("meta"):
        inputs = torch.zeros(3, 8, 8, 8), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 12, 32)
    work = count_work(lambda: unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]))
    assert graph.flops == work.flops
    # A product's bias belongs to it in one and is an addition of its own in the other.
    assert graph.num_bytes == pytest.approx(work.num_bytes, rel=0.03)


@pytest.mark.parametrize("shapes", [SD_TURBO, SDXL_TURBO], ids=lambda shapes: shapes.name)
def test_channels_last_draws_the_same(shapes: Shapes) -> None:
    small = shrunk(shapes)
    torch.manual_seed(0)
    model = build(small, "tiny", "cpu", torch.float32)
    inputs = make_inputs(small, 2, 2, "cpu", torch.float32)
    inputs.refill()
    with torch.inference_mode():
        expected = prepare(model, inputs, VARIANTS[0])().clone()
        assert expected.shape == (2, 64, 64, 3)
        assert not torch.equal(expected[0], expected[1])
        images = prepare(model, inputs, Variant("last", is_channels_last=True))()
        assert (images.int() - expected.int()).abs().max() <= 1
        inputs.refill()
        assert not torch.equal(prepare(model, inputs, VARIANTS[0])(), expected)


def test_the_whole_can_be_compiled() -> None:
    small = shrunk(SD_TURBO)
    torch.manual_seed(0)
    model = build(small, "tiny", "cpu", torch.float32)
    inputs = make_inputs(small, 1, 1, "cpu", torch.float32)
    inputs.refill()
    with torch.inference_mode():
        expected = prepare(model, inputs, VARIANTS[0])()
        # Traced as for a GPU; generating code would take a compiler and minutes.
        images = prepare(model, inputs, Variant("c", is_compiled=True), compiler="eager")()
    assert (images.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("shapes", [SD_TURBO, SDXL_TURBO], ids=lambda shapes: shapes.name)
def test_compiled_blocks_draw_the_same_and_can_be_undone(shapes: Shapes) -> None:
    small = shrunk(shapes)
    torch.manual_seed(0)
    model = build(small, "tiny", "cpu", torch.float32)
    inputs = make_inputs(small, 1, 1, "cpu", torch.float32)
    inputs.refill()
    compiled: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    with torch.inference_mode():
        expected = prepare(model, inputs, VARIANTS[0])()
        blocks = Variant("blocks", are_blocks_compiled=True)
        images = prepare(model, inputs, blocks, compiler=compiler)()
        assert (images.int() - expected.int()).abs().max() <= 1
        num_compiled = len(compiled)
        num_blocks = sum("Block" in type(part).__name__ for part in model.modules())
        assert 3 < num_compiled < num_blocks  # blocks of one shape share what was compiled
        assert torch.equal(prepare(model, inputs, VARIANTS[0])(), expected)
        assert len(compiled) == num_compiled


class HostTensors(TorchDispatchMode):
    """Notes every operator that a tensor of the host takes part in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if torch.is_tensor(leaf)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("vae", ["kl", "tiny"])
@pytest.mark.parametrize("shapes", [SD_TURBO, SDXL_TURBO], ids=lambda shapes: shapes.name)
def test_the_whole_can_be_captured(shapes: Shapes, vae: str) -> None:
    # A capture fails on a copy from the host and on a branch that waits for a value. Tensors
    # without contents show both: the copy as a tensor of another device, the branch as an error.
    small = shrunk(shapes)
    model = build(small, vae, "meta", torch.float32)
    inputs = make_inputs(small, 2, 2, "meta", torch.float32)
    with torch.no_grad(), HostTensors() as host:
        torch.zeros(1) + 1
        assert len(host.found) == 2
        host.found.clear()
        model(*inputs.tensors)
    assert host.found == []


def test_the_host_buffers_take_turns() -> None:
    first, second = torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)
    host = HostPictures(first)
    numbers = [host.fetch(first), host.fetch(second)]
    assert numbers == [0, 1]
    assert torch.equal(host.wait(0), first)
    assert torch.equal(host.wait(1), second)
    assert host.fetch(second) == 0


def test_every_timed_batch_is_another() -> None:
    small = shrunk(SD_TURBO)
    inputs = make_inputs(small, 1, 1, "cpu", torch.float32)
    seen: list[bytes] = []

    def launch() -> torch.Tensor:
        seen.append(inputs.noise_SBChw.numpy().tobytes() + inputs.input_ids_BL.numpy().tobytes())
        return torch.zeros(1, 4, 4, 3, dtype=torch.uint8)

    timing = time_variant(launch, inputs, Effort(num_runs=7, num_warm_up=2))
    assert len(timing.spans_s) == 7
    assert len(set(seen)) == len(seen) == 1 + 2 + 7 + 7
    assert timing.images_per_s > 0


def test_the_tiny_run_writes_every_row_and_a_second_one_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "gpu.json"
    assert bench_gpu.main([*ARGUMENTS, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped: needs CUDA") == 4
    content = json.loads(out.read_text())
    assert [row["variant"] for row in content["rows"]] == [variant.name for variant in VARIANTS]
    eager, last = content["rows"][:2]
    for row in (eager, last):
        assert row["status"] == "ok"
        assert row["median_ms"] <= row["p99_ms"]
        assert 0 < row["roofline_share"]
    assert eager["ratio_to_eager"] == 1.0
    assert last["ratio_to_eager"] == pytest.approx(eager["median_ms"] / last["median_ms"], 1e-3)

    measured: list[str] = []

    def measure(model: Any, case: Any, variant: Variant, *rest: Any) -> dict[str, Any]:
        measured.append(variant.name)
        return bench_gpu._empty("out of memory")

    monkeypatch.setattr(bench_gpu, "measure", measure)
    assert bench_gpu.main([*ARGUMENTS, "--out", str(out)]) == 0
    assert measured == []
    assert json.loads(out.read_text())["rows"] == content["rows"]
    # Cut in the middle, and with a row that had failed: these two are measured, no other.
    content["rows"] = content["rows"][:4]
    content["rows"][2]["status"] = "failed: by hand"
    out.write_text(json.dumps(content))
    assert bench_gpu.main([*ARGUMENTS, "--out", str(out)]) == 0
    assert measured == ["compile", "blocks_cuda_graph", "compile_cuda_graph"]
    rows = json.loads(out.read_text())["rows"]
    assert sorted(row["variant"] for row in rows) == sorted(variant.name for variant in VARIANTS)
    assert {row["run"] for row in rows} == {0, 1}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("no compiler\nat all"), "failed: RuntimeError: no compiler"),
    ],
)
def test_what_goes_wrong_in_one_row_is_its_status(
    error: Exception,
    status: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(model: Any, inputs: Any, variant: Variant) -> Any:
        if variant.is_channels_last:
            raise error
        return prepare(model, inputs, variant)

    monkeypatch.setattr(bench_gpu, "prepare", fail)
    out = tmp_path / "gpu.json"
    assert bench_gpu.main([*ARGUMENTS, "--out", str(out)]) == 0
    statuses = [row["status"] for row in json.loads(out.read_text())["rows"]]
    assert statuses == ["ok", status, *["skipped: needs CUDA"] * 4]
    assert status in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no result of this program"),
        ('{"machine": {"gpu": "x", "versions": {}}, "runs": [], "rows": []}', "another card"),
    ],
)
def test_a_file_of_something_else_is_kept(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(content)
    assert bench_gpu.main([*ARGUMENTS, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert out.read_text() == content


def test_without_a_gpu_the_remedy_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "--tiny shows on a CPU that it runs" in capsys.readouterr().err
