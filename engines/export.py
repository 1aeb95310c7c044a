"""From a torch folder in the diffusers layout to a bundle that serves without torch.

Owns the three ONNX graphs, how their weights are stored and how a bundle appears on disk: whole
or not at all. What a stage computes is in `engines.runtime.modules`; what a bundle says is in
`engines.spec`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from engines.errors import ExportError
from engines.runtime.base import stage_inputs, stage_outputs
from engines.runtime.modules import TorchStages, load_modules
from engines.spec import SPEC_FILE, STAGES, ModelSpec, StageFile, StageName, sha256_of
from engines.tokenizer import tokenizer_path

OPSET = 20
_EXAMPLE_BATCH = 2  # the tracer would take a batch of one for a constant
_MAX_GRAPH_BYTES = 2**31 - 1  # protobuf's own limit for one file
_COPIED = ("README.md", "grid.webp", "training.json", "evaluation.json", "provenance.json")
_TOKENIZER_FILE = "tokenizer.json"
Report = Callable[[str], None]


def export_bundle(source: Path, bundle: Path, *, report: Report = lambda line: None) -> ModelSpec:
    """Write `bundle` from the torch folder `source` and return its spec.

    Args:
        source: model.json, tokenizer, text_encoder, unet, vae; the model card, its grid and
            the records of training and evaluation go along.
        bundle: folder to write; an older bundle there is replaced once the new one is whole.
        report: called with a line of progress before each long part.

    Raises:
        BundleError: model.json is missing or damaged.
        ExportError: a part cannot be loaded or traced, or `bundle` is some other folder.
    """
    source, bundle = Path(source), Path(bundle)
    spec = ModelSpec.load(source)
    tokenizer = tokenizer_path(source, spec)
    _refuse_foreign(source, bundle)
    modules = load_modules(source, spec)
    partial = bundle.parent / f".{bundle.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        stages: dict[StageName, StageFile] = {}
        for stage in STAGES:
            report(f"tracing the {stage} stage")
            stages[stage] = _export_stage(modules, stage, spec, partial / f"{stage}.onnx")
        shutil.copyfile(tokenizer, partial / _TOKENIZER_FILE)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        files = {_TOKENIZER_FILE: sha256_of(partial / _TOKENIZER_FILE)}
        update = {"stages": stages, "files": files, "tokenizer_file": _TOKENIZER_FILE}
        written = spec.model_copy(update=update)
        written.save(partial)
        _replace_folder(partial, bundle)
    except OSError as error:
        raise ExportError(f"cannot write {bundle}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _refuse_foreign(source: Path, bundle: Path) -> None:
    if bundle.resolve() == source.resolve():
        raise ExportError(f"{bundle} is the torch folder itself: give another --out")
    is_foreign = bundle.is_file() or (
        bundle.is_dir() and any(bundle.iterdir()) and not (bundle / SPEC_FILE).is_file()
    )
    if is_foreign:
        raise ExportError(f"{bundle} exists and is no bundle: give an empty or new --out")


def _replace_folder(partial: Path, bundle: Path) -> None:
    """Put `partial` where `bundle` is; a reader sees the old one, for an instant none, the new."""
    if not bundle.exists():
        partial.rename(bundle)
        return
    old = bundle.parent / f".{bundle.name}.{os.getpid()}.old"
    bundle.rename(old)
    try:
        partial.rename(bundle)
    except OSError:
        old.rename(bundle)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _export_stage(modules: TorchStages, stage: StageName, spec: ModelSpec, path: Path) -> StageFile:
    module: torch.nn.Module = getattr(modules, stage)
    try:
        model = _trace(module, stage, _example_inputs(stage, spec), spec)
    except Exception as error:  # the tracer wraps whatever the failing operator raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0]
        raise ExportError(f"cannot trace the {stage} stage: {reason}") from error
    num_bytes = _store_in_half(model)
    _strip(model)
    if num_bytes > _MAX_GRAPH_BYTES:
        raise ExportError(
            f"the {stage} stage's weights take {num_bytes / 2**30:.1f} GiB; "
            "one graph file holds at most 2 GiB"
        )
    ir.save(model, path)
    return StageFile(file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _example_inputs(stage: StageName, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    shape = (_EXAMPLE_BATCH, *spec.latent_shape(*spec.sizes_px[0]))
    latents_BChw = torch.zeros(shape)
    if stage == "text":
        return (torch.zeros((_EXAMPLE_BATCH, spec.text.max_tokens), dtype=torch.int64),)
    if stage == "decode":
        return (latents_BChw,)
    return (
        latents_BChw,
        torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64),
        torch.zeros((_EXAMPLE_BATCH, spec.text.max_tokens, spec.text.width)),
    )


def _trace(
    module: torch.nn.Module,
    stage: StageName,
    inputs: tuple[torch.Tensor, ...],
    spec: ModelSpec,
) -> ir.Model:
    has_many_sizes = len(set(spec.sizes_px)) > 1
    names = stage_inputs(spec, stage)
    dynamic: Any = torch.export.Dim.DYNAMIC

    def axes(name: str) -> dict[int, Any]:
        spatial = {2: dynamic, 3: dynamic} if has_many_sizes and name.endswith("BChw") else {}
        return {0: dynamic} | spatial

    with warnings.catch_warnings():
        # The tracer warns of its own internals; what matters is checked on the graph it makes.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(stage_outputs(spec, stage)),
            dynamic_shapes=tuple(axes(name) for name in names),
            verbose=False,
        )
    assert program is not None
    return program.model


def _store_in_half(model: ir.Model) -> int:
    """Keep matrices and kernels as float16, cast to float32 inside the graph; return the bytes.

    Runtimes fold the casts when they load the graph, so that nothing is cast per call. Vectors
    stay float32: they are small, and the schedule tables and norms among them need the digits.
    """
    num_bytes = 0
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        num_bytes += tensor.nbytes
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
            continue
        num_bytes -= tensor.nbytes // 2
        uses = list(value.uses())
        del model.graph.initializers[name]
        half = ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(array.astype(np.float16), name=f"{name}.half"),
        )
        model.graph.initializers.add(half)
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
        cast.outputs[0].name = name
        cast.outputs[0].shape = value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(model.graph[0], cast)
        for user, index in uses:
            user.replace_input_with(index, cast.outputs[0])
    return num_bytes


def _strip(model: ir.Model) -> None:
    """Remove what the tracer notes of the machine it ran on: stack traces with local paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        value.doc_string = None
