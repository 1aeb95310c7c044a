"""What a backend gives the pipeline.

Owns the protocol of a stage, the tensor names that every graph, plan and module shares, and how a
backend runs the sampling loop. Knows no framework.

Shape suffixes: B batch, L tokens, D width, P pooled width, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from engines.spec import ModelSpec, Precision, StageName

Arrays = tuple[Any, ...]
Compiler = Literal["none", "compile", "package"]


def stage_inputs(spec: ModelSpec, stage: StageName) -> tuple[str, ...]:
    """Names of a stage's inputs, in order."""
    if stage == "denoise":
        pooled = () if spec.text.pooled_width is None else ("pooled_BP",)
        return ("latents_BChw", "timestep_B", "text_embeds_BLD", *pooled)
    return {"text": ("input_ids_BL",), "encode": ("images_BHWC",), "decode": ("latents_BChw",)}[
        stage
    ]


def stage_outputs(spec: ModelSpec, stage: StageName) -> tuple[str, ...]:
    """Names of a stage's outputs, in order."""
    if stage == "text":
        pooled = () if spec.text.pooled_width is None else ("pooled_BP",)
        return ("text_embeds_BLD", *pooled)
    return {
        "encode": ("latents_BChw",),
        "denoise": ("denoised_BChw",),
        "decode": ("images_BHWC",),
    }[stage]


class Stage(Protocol):
    """One compiled part of a model."""

    def __call__(self, *inputs: Any) -> Arrays:
        """Run on arrays in the order of `stage_inputs`; return those of `stage_outputs`.

        Arrays are numpy's, or the backend's own where its `Runner` hands out such.

        Raises:
            BackendError: the runtime refused the inputs or failed.
            OutOfMemoryError: the batch does not fit.
        """


class Runner(Protocol):
    """How a backend runs a function of stages and plain arithmetic over arrays.

    The pipeline writes its sampling loop once, as such a function. A runner may call it, or record
    it once per key and play the record: a CUDA graph is that.
    """

    def __call__(
        self, key: Hashable, body: Callable[..., Arrays], inputs: tuple[NDArray[Any], ...]
    ) -> tuple[NDArray[Any], ...]:
        """Return what `body` makes of the inputs, as numpy arrays.

        Args:
            key: what `body` depends on beside its inputs' values and shapes.
            body: takes one array per input, and returns arrays; the first axis of all is the batch.
            inputs: numpy arrays of B rows each. A runner may pad the batch and cut the result.

        Raises:
            BackendError: the runtime failed.
            OutOfMemoryError: the batch does not fit.
        """


def run_directly(
    key: Hashable, body: Callable[..., Arrays], inputs: tuple[NDArray[Any], ...]
) -> tuple[NDArray[Any], ...]:
    """The runner of backends whose stages take and give numpy arrays."""
    return body(*inputs)


@dataclass(frozen=True)
class Stages:
    """The stages of a model, loaded by one backend.

    Attributes:
        text: input_ids_BL int64 -> text_embeds_BLD float32, and pooled_BP float32 where the model
            has two text encoders.
        denoise: latents_BChw float32, timestep_B int64, text_embeds_BLD (and pooled_BP) float32 ->
            denoised_BChw float32, the estimate of the clean latents.
        decode: latents_BChw float32 -> images_BHWC uint8.
        encode: images_BHWC uint8 -> latents_BChw float32; None where the bundle has none.
        run: how the sampling loop is run.
        batch_sizes: what it is compiled for, ascending; empty where any size will do.
        memory_bytes: used and total of the accelerator; None where there is none.
        row_counts: rows of pictures that `run` has drawn, and rows that only filled a batch up;
            both 0 where batches are never padded.
    """

    text: Stage
    denoise: Stage
    decode: Stage
    encode: Stage | None = None
    run: Runner = field(default=run_directly)
    batch_sizes: tuple[int, ...] = ()
    memory_bytes: Callable[[], tuple[int, int] | None] = lambda: None
    row_counts: Callable[[], tuple[int, int]] = lambda: (0, 0)


@dataclass(frozen=True)
class RuntimeOptions:
    """How stages are loaded.

    Attributes:
        precision: which graphs of the bundle; None takes its base.
        num_threads: on a CPU; None leaves the choice to the runtime.
        device: "cuda", "cuda:N", or "cpu" where a backend can do either; None leaves it to the
            backend.
        batch_sizes: what a backend that records or compiles prepares for; None leaves it to the
            backend.
        compiler: of the torch_cuda backend. "none" calls torch's own kernels; "compile" is
            torch.compile at the first batch of each size, which takes minutes; "package" takes what
            `engines.runtime.torch_cuda.compile_packages` made before.
    """

    precision: Precision | None = None
    num_threads: int | None = None
    device: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    compiler: Compiler = "none"


class Backend(Protocol):
    """The module-level interface that the registry loads by name."""

    def load_stages(self, folder: Path, spec: ModelSpec, options: RuntimeOptions) -> Stages:
        """Load the stages of `folder`.

        Raises:
            BundleError: a file is missing or damaged.
            BackendError: the runtime cannot load it.
        """
