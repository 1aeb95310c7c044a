"""What a run is: frozen dataclasses, overrides, JSON.

Owns every number that a training can be told. The saved config.json of a run folder is one
`RunConfig`, so that a run can be read, repeated and resumed. Knows neither torch nor disk.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from engines.spec import PredictionType, ScheduleSpec

DistillWeight = Literal["exponential", "none"]
FeatureSource = Literal["teacher", "folder"]


class ConfigError(ValueError):
    """A preset, field or value does not exist; the message names it and what is allowed."""


@dataclass(frozen=True)
class DataConfig:
    """Which captioned pictures are read.

    Attributes:
        path: Parquet file or folder of them, or "shapes" for the set that the project draws.
        heldout_path: Parquet file of (concept, style) pairs kept from training, for evaluation.
        styles: styles to keep; empty keeps all.
        concepts: names to keep; empty keeps all. The autoencoder sees all pictures all the same.
        captions_name_concept: drop captions that do not contain the concept's name.
    """

    path: str = "shapes"
    heldout_path: str | None = None
    image_size_px: int = 128
    styles: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    captions_name_concept: bool = False
    num_shapes: int = 512


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to `final_lr_fraction`."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_iterations: int = 100
    final_lr_fraction: float = 0.05
    grad_clip: float = 1.0
    batch_size: int = 16
    iterations: int = 1000


@dataclass(frozen=True)
class AutoencoderConfig:
    """diffusers AutoencoderDC; the first entry of the tuples is the full-resolution level.

    Attributes:
        latent_noise: Gaussian noise on the latents while training, as a fraction of their RMS,
            so that the decoder forgives small errors of the student.
        crop_px: side of the random crops that it trains on; the network is fully convolutional.
    """

    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (8, 32, 64, 128)
    encoder_layers: tuple[int, ...] = (0, 1, 1, 1)
    decoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    latent_noise: float = 0.1
    crop_px: int = 64
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-3))

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one axis."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True)
class TextConfig:
    """transformers CLIPTextModel and a byte-pair vocabulary trained on the captions."""

    vocab_size: int = 4096
    max_tokens: int = 16
    width: int = 256
    num_layers: int = 2
    num_heads: int = 4
    max_prompt_chars: int = 200


@dataclass(frozen=True)
class UnetConfig:
    """diffusers UNet2DConditionModel; levels with attention are named by `attention`.

    A pooled text vector joins the time embedding (`addition_embed_type="text"`): with few
    pictures the text path must be strong from the start.
    """

    block_out_channels: tuple[int, ...] = (64, 160, 256)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 1
    head_width: int = 32
    norm_num_groups: int = 32
    time_scale_shift: Literal["default", "scale_shift"] = "default"


@dataclass(frozen=True)
class TeacherConfig:
    """Training of the diffusion teacher.

    Attributes:
        timestep_shift: above 1, noisier timesteps are drawn more often. With few pictures the
            layout, which is decided there, is the hard part. Source: arXiv:2403.03206, eq. 23.
    """

    prediction_type: PredictionType = "v_prediction"
    timestep_shift: float = 1.0
    schedule: ScheduleSpec = field(
        default_factory=lambda: ScheduleSpec(zero_terminal_snr="rescale")
    )
    caption_dropout: float = 0.1
    ema_decay: float = 0.999
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Frozen features and the trained heads on them.

    Attributes:
        features: "teacher" takes the teacher's own down and middle blocks at a drawn noise level
            (Source: arXiv:2403.12015, section 3); "folder" takes a transformers vision model.
        folder: where that model lies, e.g. a local DINOv2.
        hooks: hidden states of the folder's model that get a head.
        input_size_px: side of the picture that the folder's model is given.
        noise_timesteps: range of timesteps drawn for the teacher's features.
    """

    features: FeatureSource = "teacher"
    folder: str | None = None
    hooks: tuple[int, ...] = (2, 5, 8, 11)
    input_size_px: int = 224
    noise_timesteps: tuple[int, int] = (20, 800)
    head_width: int = 64
    lr: float = 5e-4
    r1_gamma: float = 1e-5


@dataclass(frozen=True)
class StudentConfig:
    """Adversarial Diffusion Distillation. Source: arXiv:2311.17042, section 3.

    Attributes:
        timesteps: the student's few timesteps, descending; the first must be the last of the
            schedule, where its input is pure noise.
        timestep_weights: how often each is drawn.
        distill_weight: c(t); "exponential" is alpha_t.
        lambda_distill: weight of the distillation loss.
        teacher_timesteps: range of t drawn for the teacher's target.
        teacher_guidance: classifier-free guidance scale of the teacher's target.
        adversarial_share: hold the adversarial loss's gradient on the student's picture at this
            share of the other losses' together, whatever its own size, instead of a fixed weight
            (the paper's, None). Source: arXiv:2012.09841, eq. 7.
        lambda_reconstruct: weight of a plain regression on the real latents, not in the paper
            (0 there). On a small set, where most captions have one right answer, it holds the
            student to it.
    """

    timesteps: tuple[int, ...] = (999, 749, 499, 249)
    timestep_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    distill_weight: DistillWeight = "exponential"
    lambda_distill: float = 2.5
    distill_space: Literal["pixel", "latent"] = "pixel"
    lambda_adversarial: float = 1.0
    adversarial_share: float | None = None
    lambda_reconstruct: float = 0.0
    teacher_timesteps: tuple[int, int] = (20, 980)
    teacher_guidance: float = 1.0
    ema_decay: float = 0.999
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-4, beta1=0.0, beta2=0.99)
    )


@dataclass(frozen=True)
class RunConfig:
    """One model from captioned pictures to a student."""

    name: str
    description: str = ""
    license: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    seed: int = 0
    device: str = "auto"
    num_threads: int = 0
    bf16: bool = True
    snapshot_every_s: float = 120.0
    report_every: int = 25
    sample_every: int = 500

    def __post_init__(self) -> None:
        """Refuse values that cannot work together, before anything is trained."""
        for is_wrong, message in chain(self._schedule_rules(), self._network_rules()):
            if is_wrong:
                raise ConfigError(message)

    def _schedule_rules(self) -> Iterator[tuple[bool, str]]:
        student, schedule = self.student, self.teacher.schedule
        last = schedule.num_train_timesteps - 1
        yield (
            student.timesteps[:1] != (last,),
            f"student.timesteps must start at {last}, where the input is noise",
        )
        yield (
            list(student.timesteps) != sorted(set(student.timesteps), reverse=True),
            "student.timesteps must descend without repeats",
        )
        yield student.timesteps[-1:] < (0,), "student.timesteps must not be negative"
        weights = student.timestep_weights
        yield (
            len(weights) != len(student.timesteps) or min(weights) < 0 or sum(weights) <= 0,
            "student.timestep_weights must have one weight per timestep, none below 0, not all 0",
        )
        for name, bounds in (
            ("teacher_timesteps", student.teacher_timesteps),
            ("discriminator.noise_timesteps", student.discriminator.noise_timesteps),
        ):
            yield (
                not 0 <= bounds[0] <= bounds[1] <= last,
                f"student.{name} must be a lowest and a highest timestep in 0..{last}",
            )
        yield (
            self.teacher.prediction_type == "epsilon" and schedule.zero_terminal_snr == "rescale",
            'teacher.schedule.zero_terminal_snr="rescale" leaves epsilon undefined at the last '
            'timestep: use "input_only" or v_prediction',
        )
        for name in ("autoencoder", "teacher", "student"):
            optimizer: OptimizerConfig = getattr(self, name).optimizer
            yield optimizer.batch_size < 1, f"{name}.optimizer.batch_size must be at least 1"
            yield optimizer.iterations < 1, f"{name}.optimizer.iterations must be at least 1"

    def _network_rules(self) -> Iterator[tuple[bool, str]]:
        codec, unet, disc = self.autoencoder, self.unet, self.student.discriminator
        yield (
            disc.features == "folder" and not disc.folder,
            "student.discriminator.folder must name a local vision model",
        )
        num_groups = 8  # of the heads' group norms
        yield (
            disc.head_width < 1 or disc.head_width % num_groups != 0,
            f"student.discriminator.head_width must be a multiple of {num_groups}",
        )
        yield (
            not 0
            < len(codec.block_out_channels)
            == len(codec.encoder_layers)
            == len(codec.decoder_layers),
            "autoencoder.encoder_layers and decoder_layers must match block_out_channels in length",
        )
        yield (
            not 0 < len(unet.block_out_channels) == len(unet.attention),
            "unet.attention must match unet.block_out_channels in length",
        )
        for name in ("norm_num_groups", "head_width"):
            unit = getattr(unet, name)
            yield (
                unit < 1 or any(width % unit for width in unet.block_out_channels),
                f"unet.block_out_channels must be multiples of unet.{name}, {unit}",
            )
        yield (
            self.text.num_heads < 1 or self.text.width % self.text.num_heads != 0,
            "text.width must be a multiple of text.num_heads",
        )
        multiple = codec.downscale * self.unet_downscale
        size_px = self.data.image_size_px
        yield (
            size_px < 1 or size_px % multiple != 0,
            (f"data.image_size_px must be a multiple of {multiple}"),
        )
        yield (
            codec.crop_px < 1 or codec.crop_px % codec.downscale != 0,
            (f"autoencoder.crop_px must be a multiple of {codec.downscale}"),
        )

    @property
    def unet_downscale(self) -> int:
        """Latent cells per cell of the UNet's deepest level along one axis."""
        return int(2 ** (len(self.unet.block_out_channels) - 1))

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps(_plain(self), indent=2) + "\n"

    def that_shapes(self, stage: str) -> dict[str, Any]:
        """The sections that decide a stage's result; a later stage may change freely."""
        sections = {
            "autoencoder": ("data", "autoencoder"),
            "teacher": ("data", "autoencoder", "text", "unet", "teacher"),
            "student": ("data", "autoencoder", "text", "unet", "teacher", "student"),
        }[stage]
        return {name: getattr(self, name) for name in ("seed", "bf16", *sections)}

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read config.json back."""
        config: RunConfig = _build(cls, json.loads(text), "")
        return config


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Apply `section.field=value` assignments; values are JSON, bare words are strings.

    Raises:
        ConfigError: an assignment is malformed, or names no field, or has a value of another kind.
    """
    plain = _plain(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes section.field=value, got {assignment!r}")
        node: dict[str, Any] = plain
        *sections, last = path.split(".")
        for section in sections:
            if not isinstance(node.get(section), dict):
                raise ConfigError(f"--set {path}: no section {section!r}")
            node = node[section]
        if last not in node:
            raise ConfigError(f"--set {path}: no field {last!r}; fields: {', '.join(node)}")
        try:
            node[last] = json.loads(text)
        except json.JSONDecodeError:
            node[last] = text
    changed: RunConfig = _build(RunConfig, plain, "")
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, ScheduleSpec):
        return value.model_dump()
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _build(kind: Any, plain: Any, where: str) -> Any:
    if kind is ScheduleSpec:
        try:
            return ScheduleSpec.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, (where[:-1], *first["loc"])))
            raise ConfigError(f"{field}: {first['msg']}, got {first['input']!r}") from error
    if dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise ConfigError(f"{where[:-1]} is a section, set one of its fields; got {plain!r}")
        hints = get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        for key in plain:
            if key not in names:
                raise ConfigError(f"unknown field {where}{key}; fields: {', '.join(names)}")
        return kind(**{k: _build(hints[k], v, f"{where}{k}.") for k, v in plain.items()})  # type: ignore[operator]  # a dataclass type is callable
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(plain, list):
            raise ConfigError(f"{where[:-1]} must be a list, got {plain!r}")
        if Ellipsis not in get_args(kind) and len(plain) != len(get_args(kind)):
            raise ConfigError(f"{where[:-1]} must have {len(get_args(kind))} entries, got {plain}")
        return tuple(_build(item, entry, where) for entry in plain)
    if get_origin(kind) is Literal:
        if plain not in get_args(kind):
            raise ConfigError(f"{where[:-1]} must be one of {get_args(kind)}, got {plain!r}")
        return plain
    return _scalar(kind, plain, where)


def _scalar(kind: Any, plain: Any, where: str) -> Any:
    allowed = get_args(kind) or (kind,)
    if float in allowed and type(plain) is int:
        return float(plain)
    if type(plain) not in allowed:
        names = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
        raise ConfigError(f"{where[:-1]} must be {names}, got {plain!r}")
    return plain
