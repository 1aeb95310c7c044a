"""From a stage's module to an ONNX graph in memory.

Owns the opset, the example inputs and which axes are free. The graph's precision is that of the
module: it is strongly typed as it stands, with nothing cast afterwards.
"""

from __future__ import annotations

import warnings
from typing import Any

import onnx_ir as ir
import torch

from engines.errors import ExportError
from engines.runtime.base import stage_inputs, stage_outputs
from engines.spec import ModelSpec, StageName

OPSET = 20
_EXAMPLE_BATCH = 2  # the tracer would take a batch of one for a constant


def trace(module: torch.nn.Module, stage: StageName, spec: ModelSpec) -> ir.Model:
    """Trace a stage with a free batch axis, and free sizes where the model draws several.

    Raises:
        ExportError: the module cannot be traced with the shapes that the spec names.
    """
    has_many_sizes = len(set(spec.sizes_px)) > 1
    names = stage_inputs(spec, stage)
    dynamic: Any = torch.export.Dim.DYNAMIC

    def axes(name: str) -> dict[int, Any]:
        spatial = {"latents_BChw": (2, 3), "images_BHWC": (1, 2)}.get(name, ())
        return dict.fromkeys((0, *(spatial if has_many_sizes else ())), dynamic)

    try:
        with warnings.catch_warnings():
            # The tracer warns of its own internals; what matters is checked on the graph it makes.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example_inputs(stage, spec),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=list(stage_outputs(spec, stage)),
                dynamic_shapes=tuple(axes(name) for name in names),
                verbose=False,
            )
    except Exception as error:  # the tracer wraps whatever the failing operator raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0]
        raise ExportError(f"cannot trace the {stage} stage: {reason}") from error
    assert program is not None
    return program.model


def example_inputs(stage: StageName, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """Zeros of the shapes and types that a stage takes, in the order of `stage_inputs`."""
    width, height = spec.sizes_px[0]
    latents_BChw = torch.zeros((_EXAMPLE_BATCH, *spec.latent_shape(width, height)))
    if stage == "text":
        return (torch.zeros((_EXAMPLE_BATCH, spec.text.max_tokens), dtype=torch.int64),)
    if stage == "encode":
        return (torch.zeros((_EXAMPLE_BATCH, height, width, 3), dtype=torch.uint8),)
    if stage == "decode":
        return (latents_BChw,)
    inputs = [
        latents_BChw,
        torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64),
        torch.zeros((_EXAMPLE_BATCH, spec.text.max_tokens, spec.text.width)),
    ]
    if spec.text.pooled_width is not None:
        inputs.append(torch.zeros((_EXAMPLE_BATCH, spec.text.pooled_width)))
    return tuple(inputs)
