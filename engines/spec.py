"""model.json: the only contract between training and serving.

Owns what a model folder says about itself: shapes, scales, timesteps, files with their digests.
Training writes it, export fills in the stages, the pipeline obeys it. Knows no framework.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import BundleError

SPEC_FILE = "model.json"
CHECK_FILE = "check.json"
StageName = Literal["text", "encode", "denoise", "decode"]
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
Precision = Literal["float32", "float16", "bfloat16", "int8", "float8"]
# What every bundle has; "encode" is there where pictures can be drawn from pictures.
STAGES: tuple[StageName, ...] = ("text", "denoise", "decode")
ALL_STAGES: tuple[StageName, ...] = ("text", "encode", "denoise", "decode")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListedFile(_Frozen):
    """One file of the bundle, relative to the folder, with its digest."""

    file: str
    sha256: str
    size_bytes: int = Field(ge=1)


class StageFile(ListedFile):
    """One graph; `weights` lie beside it where they exceed what one graph file holds."""

    weights: ListedFile | None = None


class TextSpec(_Frozen):
    """What the text stage takes: num tokens (begin and end included), width and special ids.

    With two text encoders (SDXL) `width` is that of both joined, `pooled_width` that of the second
    one's projection, and `second_pad_token_id` is what the second one's padding is.
    """

    max_tokens: int = Field(ge=3)
    width: int = Field(ge=1)
    pooled_width: int | None = Field(default=None, ge=1)
    second_pad_token_id: int | None = Field(default=None, ge=0)
    bos_token_id: int = Field(ge=0)
    eos_token_id: int = Field(ge=0)
    pad_token_id: int = Field(ge=0)
    max_prompt_chars: int = Field(default=300, ge=1)


class LatentSpec(_Frozen):
    """The latent space: UNet latents = (autoencoder latents - shift) * scale."""

    channels: int = Field(ge=1)
    downscale: int = Field(ge=1, description="pixels per latent cell along one axis")
    scale: float = Field(gt=0)
    shift: float = 0.0


class ScheduleSpec(_Frozen):
    """The noise schedule; `zero_terminal_snr` says how the last timestep became pure noise.

    "flow" is the straight line of rectified flow: sigma rises from 0 to 1 and alpha is 1 - sigma.
    It has no betas and ends in pure noise by itself; 1001 timesteps give sigma = timestep / 1000.
    """

    num_train_timesteps: int = Field(default=1000, ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: Literal["none", "input_only", "rescale"] = "none"


class Configuration(_Frozen):
    """One way of running a bundle."""

    backend: str = Field(min_length=1)
    precision: Precision


class ModelSpec(_Frozen):
    """Everything that serving must know of a model."""

    format_version: Literal[1] = 1
    name: str = Field(min_length=1)
    description: str = ""
    license: str = ""
    prediction_type: PredictionType
    schedule: ScheduleSpec
    student_timesteps: dict[int, tuple[int, ...]] = Field(min_length=1)
    sizes_px: tuple[tuple[int, int], ...] = Field(min_length=1)
    latent: LatentSpec
    text: TextSpec
    tokenizer_file: str = "tokenizer.json"
    examples: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    base_precision: Precision = Field(default="float32", description="of `stages`")
    stages: dict[StageName, StageFile] = Field(default_factory=dict)
    variants: dict[Precision, dict[StageName, StageFile]] = Field(
        default_factory=dict, description="graphs in other precisions than the base's"
    )
    files: dict[str, str] = Field(default_factory=dict, description="other files, path -> sha256")
    preferred: tuple[Configuration, ...] = Field(
        default=(), description="what to run when nothing is asked, the fastest first"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        last = self.schedule.num_train_timesteps - 1
        if self.schedule.beta_schedule == "flow" and self.prediction_type not in ("flow", "sample"):
            raise ValueError(f"a flow has no {self.prediction_type}: predict flow or sample")
        for num_steps, timesteps in self.student_timesteps.items():
            if len(timesteps) != num_steps:
                raise ValueError(f"student_timesteps[{num_steps}] must hold {num_steps} timesteps")
            if list(timesteps) != sorted(set(timesteps), reverse=True):
                raise ValueError(f"student_timesteps[{num_steps}] must descend without repeats")
            if timesteps[0] > last or timesteps[-1] < 0:
                raise ValueError(f"student_timesteps[{num_steps}] must lie in 0..{last}")
        if sorted(self.student_timesteps) != list(range(1, len(self.student_timesteps) + 1)):
            raise ValueError("student_timesteps must cover 1, 2, ... without a gap")
        if self.base_precision in self.variants:
            raise ValueError(f"variants: {self.base_precision} is what stages holds")
        for entry in self.preferred:
            if entry.precision not in self.precisions:
                raise ValueError(f"preferred: there are no {entry.precision} graphs")
        if CHECK_FILE in self.files:
            raise ValueError(f"files: {CHECK_FILE} is written after the bundle and has no digest")
        for name in (self.tokenizer_file, *self._listed()):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name} lies outside the model's folder")
        for width, height in self.sizes_px:
            if width % self.latent.downscale or height % self.latent.downscale:
                raise ValueError(f"size {width}x{height} is no multiple of latent.downscale")
        return self

    @property
    def max_steps(self) -> int:
        """Largest number of denoise steps that the student was trained for."""
        return max(self.student_timesteps)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the bundle holds graphs for, the base first."""
        return (self.base_precision, *self.variants)

    def stage_files(self, precision: Precision | None = None) -> dict[StageName, StageFile]:
        """Every stage's graph in a precision; a variant may leave stages to the base.

        Raises:
            BundleError: the bundle has no such variant.
        """
        if precision is None or precision == self.base_precision:
            return self.stages
        if precision not in self.variants:
            raise BundleError(
                f"{self.name} has no {precision} graphs, only {', '.join(self.precisions)}: "
                f"export it with `--precision {precision}`"
            )
        return self.stages | self.variants[precision]

    def _listed(self) -> dict[str, str]:
        """Path -> sha256 of every file but model.json."""
        graphs: list[ListedFile] = []
        for stages in (self.stages, *self.variants.values()):
            for stage in stages.values():
                graphs += [stage] if stage.weights is None else [stage, stage.weights]
        return {graph.file: graph.sha256 for graph in graphs} | self.files

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents for a size in pixels."""
        return (
            self.latent.channels,
            height // self.latent.downscale,
            width // self.latent.downscale,
        )

    @classmethod
    def load(cls, folder: Path) -> ModelSpec:
        """Read `folder`/model.json.

        Raises:
            BundleError: the folder or file is missing, unreadable or not of this format.
        """
        path = Path(folder) / SPEC_FILE
        if not path.is_file():
            raise BundleError(
                f"no model at {path}: give a bundle folder that `onestep-engines export` wrote"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            raise BundleError(
                f"{path} is damaged or of another version ({field}: {first['msg']}): "
                "export the bundle again"
            ) from error
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error

    def save(self, folder: Path) -> None:
        """Write `folder`/model.json whole or not at all."""
        path = Path(folder) / SPEC_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def graph_path(
        self, folder: Path, stage: StageName, precision: Precision | None = None
    ) -> Path:
        """Where `folder` keeps a stage's graph.

        Raises:
            BundleError: the folder is a model that was never exported, or not in that precision.
        """
        files = self.stage_files(precision)
        if stage not in files:
            raise BundleError(
                f"{folder} holds no {stage} graph: make a bundle with `onestep-engines export`"
            )
        return Path(folder) / files[stage].file

    def verify(self, folder: Path) -> None:
        """Compare every listed file with its digest.

        Raises:
            BundleError: a file is missing or differs from what model.json says.
        """
        for name, digest in self._listed().items():
            path = Path(folder) / name
            if not path.is_file():
                raise BundleError(f"{path} is missing: export or fetch the bundle again")
            if sha256_of(path) != digest:
                raise BundleError(
                    f"{path} is damaged (sha256 differs from {SPEC_FILE}): "
                    "export or fetch the bundle again"
                )


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
