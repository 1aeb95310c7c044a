"""What a compiled plan is made for: its range of shapes, its platform and its fingerprint.

Owns batch ranges, the input shapes that follow from them, and the key of a plan. Knows no compiler
and no folder of plans; that is `engines.plans`.

Shape suffixes: B batch, C channel, H/W pixels, h/w latent; other letters name axes that a graph
fixes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.errors import BundleError
from engines.graphs import graph_digests
from engines.spec import STAGES, ModelSpec, Precision, StageName

PACKAGES: tuple[str, ...] = ("tensorrt", "tensorrt_rtx")
# What tensorrt_rtx compiles for on any machine; tensorrt compiles for the GPU that it finds.
CAPABILITIES: tuple[str, ...] = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
DEFAULT_BATCHES: tuple[int, ...] = (1, 2, 4, 8, 16)
Shape = tuple[int, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchRange(_Frozen):
    """Batch sizes that one plan takes, and the one that it is fastest at."""

    min: int = Field(ge=1)
    opt: int
    max: int

    @model_validator(mode="after")
    def _check(self) -> BatchRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError("a batch range must be min <= opt <= max")
        return self

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read "8" (that size alone) or "1:4:8" (min, opt, max).

        Raises:
            ValueError: the text is neither.
        """
        if not re.fullmatch(r"[1-9]\d{0,3}(:[1-9]\d{0,3}:[1-9]\d{0,3})?", text):
            raise ValueError(f"batch must be N or MIN:OPT:MAX, got {text!r}")
        sizes = [int(part) for part in text.split(":")]
        low, best, high = sizes if len(sizes) == 3 else sizes * 3
        if not low <= best <= high:
            raise ValueError(f"batch must be MIN <= OPT <= MAX, got {text!r}")
        return cls(min=low, opt=best, max=high)

    @classmethod
    def of(cls, size: int) -> BatchRange:
        """The range that holds one size alone."""
        return cls(min=size, opt=size, max=size)

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return str(self.opt) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


class Platform(_Frozen):
    """Where a plan runs: TensorRT package and version, and the GPU's capability ("SM89")."""

    package: str
    package_version: str
    compute_capability: str


class EngineKey(_Frozen):
    """Everything that a plan depends on; any difference asks for another plan.

    Precision is no field of its own: networks are strongly typed, so it lies in the graph.
    """

    stage: StageName
    architecture_sha256: str
    weights_sha256: str
    platform: Platform
    batch: BatchRange
    sizes_px: tuple[tuple[int, int], ...]
    refit: bool = Field(default=False, description="the plan can take other weights")

    @property
    def fingerprint(self) -> str:
        """Hex digest over all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def is_refit_of(self, other: EngineKey) -> bool:
        """Whether a plan of `other` becomes one of this key by taking its weights."""
        return self.refit and self == other.model_copy(
            update={"weights_sha256": self.weights_sha256}
        )


@dataclass(frozen=True)
class StageGraph:
    """One graph of a bundle.

    Attributes:
        stage: which part of the model.
        path: the ONNX file.
        weights_sha256: digest of the weights that lie beside it, if any do.
    """

    stage: StageName
    path: Path
    weights_sha256: str | None


def stage_graphs(
    bundle: Path, spec: ModelSpec, precision: Precision | None = None
) -> list[StageGraph]:
    """The graphs that `spec` lists in a precision (None: its base), those of every model first.

    Raises:
        BundleError: the folder is a model that was never exported, or not in that precision.
    """
    for stage in STAGES:
        spec.graph_path(bundle, stage, precision)
    files = spec.stage_files(precision)
    graphs = []
    for stage in (*STAGES, *(stage for stage in files if stage not in STAGES)):
        weights = files[stage].weights
        digest = None if weights is None else weights.sha256
        graphs.append(StageGraph(stage, spec.graph_path(bundle, stage, precision), digest))
    return graphs


def engine_key(
    graph: StageGraph, sizes_px: Sequence[tuple[int, int]], platform: Platform, batch: BatchRange
) -> EngineKey:
    """The key of the plan for a graph; reads the whole file, so copy the key for other batches.

    Raises:
        BundleError: the file is missing or no ONNX graph.
    """
    digests = graph_digests(graph.path, graph.weights_sha256)
    return EngineKey(
        stage=graph.stage,
        architecture_sha256=digests.architecture,
        weights_sha256=digests.weights,
        platform=platform,
        batch=batch,
        sizes_px=tuple(sizes_px),
    )


def input_shapes(
    spec: ModelSpec, name: str, graph_shape: Shape, batch: BatchRange
) -> tuple[Shape, Shape, Shape]:
    """(min, opt, max) shape of one input, over the batch range and all sizes of the model.

    Args:
        spec: gives the sizes; the first is the one that the plan is fastest at.
        name: ends in a letter per axis: latents_BChw.
        graph_shape: as the graph has it, -1 for the axes that it leaves free.
        batch: the batch sizes.

    Raises:
        BundleError: a free axis has no letter that says what it is.
    """
    letters = name.rpartition("_")[2]
    if len(letters) != len(graph_shape):
        raise BundleError(
            f"input {name} has {len(graph_shape)} axes, its name says {len(letters)}: "
            "export the bundle again"
        )
    pixels = {"W": [width for width, _ in spec.sizes_px], "H": [high for _, high in spec.sizes_px]}
    cells = {
        axis.lower(): [size // spec.latent.downscale for size in sizes]
        for axis, sizes in pixels.items()
    }
    axes = pixels | cells
    shapes = []
    for letter, size in zip(letters, graph_shape, strict=True):
        if size >= 0:
            shapes.append((size, size, size))
        elif letter == "B":
            shapes.append((batch.min, batch.opt, batch.max))
        elif letter in axes:
            shapes.append((min(axes[letter]), axes[letter][0], max(axes[letter])))
        else:
            raise BundleError(f"axis {letter} of input {name} is free: export the bundle again")
    low, opt, high = zip(*shapes, strict=True)
    return low, opt, high
