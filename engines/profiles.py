"""What a compiled plan was made for: its range of shapes and its fingerprint.

Owns batch ranges, the input shapes that follow from them, and engines.json, the list of a
bundle's own plans. Knows no compiler.

Shape suffixes: B batch, L tokens, D width, C channel, h/w latent.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import BundleError
from engines.spec import ModelSpec, StageName, sha256_of

ENGINES_FILE = "engines.json"
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

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return str(self.opt) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


class EngineKey(_Frozen):
    """Everything that a plan depends on; any difference asks for another build.

    Precision is no field of its own: networks are strongly typed, so it lies in the graph.
    """

    graph_sha256: str
    package: str
    package_version: str
    compute_capability: str
    batch: BatchRange
    sizes_px: tuple[tuple[int, int], ...]

    @property
    def fingerprint(self) -> str:
        """Hex digest over all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class EngineRecord(_Frozen):
    """One plan beside the list."""

    stage: StageName
    file: str
    sha256: str
    size_bytes: int
    fingerprint: str
    key: EngineKey
    build_s: float


class EngineList(_Frozen):
    """engines.json: the plans that this project built here, with their digests.

    A plan is code: one that is not listed, or differs from its digest, is never loaded.
    """

    engines: tuple[EngineRecord, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> EngineList:
        """Read the list; a folder without one has no plans.

        Raises:
            BundleError: the list is damaged.
        """
        path = Path(folder) / ENGINES_FILE
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BundleError(f"{path} is damaged: delete it and build again") from error

    def save(self, folder: Path) -> None:
        """Write the list whole or not at all."""
        path = Path(folder) / ENGINES_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def find(self, folder: Path, key: EngineKey) -> EngineRecord | None:
        """The plan of this very key, if it is listed and its file is whole."""
        for record in self.engines:
            path = Path(folder) / record.file
            if record.fingerprint == key.fingerprint and path.is_file():
                return record if sha256_of(path) == record.sha256 else None
        return None

    def having(self, record: EngineRecord) -> EngineList:
        """The list with `record` in place of any other of the same file."""
        kept = tuple(other for other in self.engines if other.file != record.file)
        return EngineList(engines=(*kept, record))


def input_shapes(
    spec: ModelSpec, stage: StageName, batch: BatchRange
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """(min, opt, max) shape of each input of a stage, over the batch range and all sizes."""
    shapes_Chw = [spec.latent_shape(width, height) for width, height in spec.sizes_px]
    low = tuple(min(axis) for axis in zip(*shapes_Chw, strict=True))
    high = tuple(max(axis) for axis in zip(*shapes_Chw, strict=True))
    text = (spec.text.max_tokens,)

    def over_batch(low: Shape, opt: Shape, high: Shape) -> tuple[Shape, Shape, Shape]:
        return (batch.min, *low), (batch.opt, *opt), (batch.max, *high)

    latents = over_batch(low, shapes_Chw[0], high)
    if stage == "text":
        return {"input_ids_BL": over_batch(text, text, text)}
    if stage == "decode":
        return {"latents_BChw": latents}
    embeds = (*text, spec.text.width)
    return {
        "latents_BChw": latents,
        "timestep_B": over_batch((), (), ()),
        "text_embeds_BLD": over_batch(embeds, embeds, embeds),
    }
