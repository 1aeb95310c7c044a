"""The true Stable Diffusion 2.1 and SDXL, exported in float16 and compiled on a CPU machine.

Run: python -m tests.bench.export_true_sizes [--out FILE.json] [--work FOLDER] [ROW...]

Architectures are the public ones, weights random: what is measured is time, memory and size, and
that the parser and the builder take the graphs. Each part runs in a process of its own, so that
its peak memory is its own: "export" makes the weights in half, traces and stores the graph, and
runs the module in float32 at batch 1 on small latents; "build" parses and compiles with
TensorRT-for-RTX for SM89, without a GPU; "agree" runs the graph under ONNX Runtime and compares.
A part that leaves less than 1.5 GiB of the machine's memory is stopped and recorded as such. Every
finished row is written at once; rows that the file has are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir
from typing import Any

GIB = 2**30
MIN_FREE_GIB = 1.5
MAX_PART_S = 3600
SIZES = ((512, 512), (128, 128))  # two sizes leave the spatial axes free: the second is compared
PARTS = ("export", "build", "agree")
# Row: the model whose configurations are read, the stage, and which autoencoder.
ROWS: dict[str, tuple[str, str, str]] = {
    "sd21 denoise": ("sd-2.1", "denoise", "full"),
    "sdxl denoise": ("sdxl", "denoise", "full"),
    "sd21 text": ("sd-2.1", "text", "full"),
    "full decode": ("sd-2.1", "decode", "full"),
    "tiny decode": ("sd-2.1", "decode", "tiny"),
    "sdxl text": ("sdxl", "text", "full"),
    "full encode": ("sd-2.1", "encode", "full"),
    "tiny encode": ("sd-2.1", "encode", "tiny"),
}


def export(row: str, work: Path) -> dict[str, Any]:
    """Weights, graph, and what torch computes with them in float32."""
    import numpy as np
    import torch

    from distill.preflight.weightless import write_teacher
    from engines.adopt import Overrides, adopt
    from engines.export.storing import store
    from engines.export.tracing import trace
    from tests.bench.true_size_stages import inputs_at, random_stage

    model, stage, vae = ROWS[row]
    folder = write_teacher(model, work / "configs")
    spec = adopt(folder, Overrides(sizes_px=SIZES))
    start_s = time.monotonic()
    module = random_stage(folder, spec, stage, vae, torch.float16)
    num_parameters = sum(p.numel() for p in module.parameters())
    made_s = time.monotonic()
    stored = store(trace(module, stage, spec), work / f"{stage}.onnx", in_half=False)
    stored_s = time.monotonic()
    peak_gib = _peak_gib()
    inputs = inputs_at(spec, stage, SIZES[1])
    module = module.float()
    module.dtype = torch.float32
    with torch.inference_mode():
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays = {f"input{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
    arrays |= {f"output{i}": tensor.numpy() for i, tensor in enumerate(outputs)}
    np.savez(work / "reference.npz", **arrays)
    weights_bytes = stored.weights.size_bytes if stored.weights else 0
    return {
        "parameters": num_parameters,
        "weights_s": round(made_s - start_s, 1),
        "export_s": round(stored_s - made_s, 1),
        "export_peak_gib": peak_gib,
        "graph_mb": round((stored.size_bytes + weights_bytes) / 1e6, 1),
        "is_external": stored.weights is not None,
        "with_reference_peak_gib": _peak_gib(),
    }


def build(row: str, work: Path) -> dict[str, Any]:
    """Parse the graph and compile it for batches of 1 to 4 at 512 pixels."""
    import tensorrt_rtx as trt

    stage = ROWS[row][1]
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    start_s = time.monotonic()
    if not parser.parse_from_file(str(work / f"{stage}.onnx")):
        raise RuntimeError(f"refused: {parser.get_error(0).desc()}")
    parsed_s = time.monotonic()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    width, height = SIZES[0]
    spatial = {"images_BHWC": (height, width, 3)}
    for index in range(network.num_inputs):
        given = network.get_input(index)
        free = iter((height // 8, width // 8))
        rest = spatial.get(given.name) or [d if d > 0 else next(free) for d in given.shape[1:]]
        profile.set_shape(given.name, *[(num, *rest) for num in (1, 1, 4)])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder gave no plan")
    return {
        "layers": network.num_layers,
        "parse_s": round(parsed_s - start_s, 1),
        "build_s": round(time.monotonic() - parsed_s, 1),
        "build_peak_gib": _peak_gib(),
        "plan_mb": round(plan.nbytes / 1e6, 1),
    }


def agree(row: str, work: Path) -> dict[str, Any]:
    """Run the graph under ONNX Runtime and compare with torch in float32."""
    import numpy as np
    import onnxruntime

    reference = np.load(work / "reference.npz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(work / f"{ROWS[row][1]}.onnx"), options)
    names = [entry.name for entry in session.get_inputs()]
    drawn = session.run(None, {name: reference[f"input{i}"] for i, name in enumerate(names)})
    gaps, deviations = [], []
    for index, output in enumerate(drawn):
        expected = reference[f"output{index}"].astype(np.float64)
        deviations.append(round(float(expected.std()), 4))
        gaps.append(np.abs(output - expected).max() / expected.std())
    return {
        "deviations": deviations,
        "max_gap_in_deviations": round(float(max(gaps)), 5),
        "agree_peak_gib": _peak_gib(),
    }


def _peak_gib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)


def _free_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 / GIB


def run_part(row: str, part: str, work: Path) -> dict[str, Any]:
    """One part in a process of its own; what went wrong is its result, too."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.export_true_sizes"]
    result = work / f"{part}.json"
    with (work / f"{part}.log").open("w") as log:
        child = subprocess.Popen(
            [*command, "--part", part, "--work", str(work), row], stdout=log, stderr=log
        )
        start_s, least_gib = time.monotonic(), _free_gib()
        while child.poll() is None:
            time.sleep(0.5)
            least_gib = min(least_gib, _free_gib())
            if least_gib < MIN_FREE_GIB or time.monotonic() - start_s > MAX_PART_S:
                child.kill()
                child.wait()
    if result.is_file():
        done: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return done
    seconds = round(time.monotonic() - start_s, 1)
    if least_gib < MIN_FREE_GIB:
        return {f"{part}_failed": f"did not fit beside other work, stopped after {seconds} s"}
    last = (work / f"{part}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
    return {f"{part}_failed": f"after {seconds} s: {' '.join(last)[:300]}"}


def torch_threads() -> str:
    """As the environment sets them for every part."""
    return os.environ.get("OMP_NUM_THREADS", "as many as there are cores")


def machine() -> dict[str, Any]:
    """What the rows ran on."""
    names = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "versions": {name: version(name) for name in names}
        | {"tensorrt_rtx": version("tensorrt_rtx_cu13")},
        "threads": torch_threads(),
        "note": "random weights. `_cpu_s` are the seconds that a whole part computed, imports "
        "included; the other seconds are of a clock, beside other work on the same cores",
    }


def main() -> None:
    """Run the rows that are asked for, or one part of one row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument(
        "--out", type=Path, default=Path("docs/measurements/export-true-sizes.json")
    )
    parser.add_argument("--work", type=Path, default=Path(gettempdir()) / "export-true-sizes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        done = globals()[options.part](options.rows[0], options.work)
        used = resource.getrusage(resource.RUSAGE_SELF)
        done[f"{options.part}_cpu_s"] = round(used.ru_utime + used.ru_stime, 1)
        (options.work / f"{options.part}.json").write_text(json.dumps(done), encoding="utf-8")
        return
    read = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    rows: dict[str, Any] = read.get("rows", {})
    for row in options.rows or [row for row in ROWS if row not in rows]:
        shutil.rmtree(options.work, ignore_errors=True)
        options.work.mkdir(parents=True)
        done = {}
        for part in PARTS:
            done |= run_part(row, part, options.work)
            if f"{part}_failed" in done and part == "export":
                break
        shutil.rmtree(options.work)
        rows[row] = done
        text = json.dumps({"machine": machine(), "rows": rows}, indent=2)
        options.out.write_text(text + "\n", encoding="utf-8")
        print(row, json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
