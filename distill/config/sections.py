"""Pictures, networks and the teacher's training: the sections of a run before its student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engines.spec import PredictionType, ScheduleSpec


@dataclass(frozen=True)
class DataConfig:
    """Which captioned pictures are read.

    Attributes:
        path: Parquet file, folder of Parquet or WebDataset .tar files, folder of captioned
            pictures, or "shapes" for the set that the project draws.
        access: "memory" decodes the whole set at the start; "stream" decodes pictures as they
            are drawn, for sets larger than memory; "precomputed" reads the latents and text
            embeddings that `onestep-distill precompute` wrote.
        fit: how a picture that is not square becomes so: its middle, white margins, or distorted.
        heldout_path: Parquet file of (concept, style) pairs kept from training, for evaluation.
        styles: styles to keep; empty keeps all.
        concepts: names to keep; empty keeps all. The autoencoder sees all pictures all the same.
        num_other_captions: how many captions that name neither the concept nor an alternative
            name are kept per picture; None keeps all. They are lists of keywords, and noisy.
        rare_groups: groups of concepts that are drawn less often, `rare_group_weight` times, and
            never recoloured.
        recoloured_share: share of the drawn samples that show a picture in another colour, its
            caption saying so; of a stream, at most that share.
        num_shapes: how many pictures of "shapes".
        shuffle_blocks: a stream shuffles the rows of this many blocks (row groups, runs of a
            tar's samples) together, which it holds in memory.
        num_read_threads: threads that read and decode a stream.
    """

    path: str = "shapes"
    heldout_path: str | None = None
    access: Literal["memory", "stream", "precomputed"] = "memory"
    fit: Literal["crop", "pad", "stretch"] = "crop"
    image_size_px: int = 128
    styles: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    num_other_captions: int | None = None
    rare_groups: tuple[str, ...] = ()
    rare_group_weight: float = 0.3
    recoloured_share: float = 0.0
    num_shapes: int = 512
    shuffle_blocks: int = 8
    num_read_threads: int = 4


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to `final_lr_fraction`.

    Attributes:
        decay_fraction: the last part of the run, over which the learning rate falls; below 1 it
            stays at its peak before, so that a run can be made longer from an early snapshot.
        bits: of the two moments that are kept of every weight; 8 keeps them quantised in blocks
            (arXiv:2110.02861), in a quarter of the memory, and needs bitsandbytes.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    warmup_iterations: int = 100
    decay_fraction: float = 1.0
    final_lr_fraction: float = 0.05
    grad_clip: float = 1.0
    batch_size: int = 16
    iterations: int = 1000
    bits: Literal[8, 32] = 32


@dataclass(frozen=True)
class AutoencoderConfig:
    """diffusers AutoencoderDC; the first entry of the tuples is the full-resolution level.

    Attributes:
        latent_noise: Gaussian noise on the latents while training, as a fraction of their RMS,
            so that the decoder forgives small errors of the student.
        latent_penalty: weight of a pull of the latents' RMS towards 1. Nothing else in the loss
            fixes their size, and left alone they grow beyond what half precision holds.
        crop_px: side of the random crops that it trains on; the network is fully convolutional.
    """

    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (8, 32, 64, 128)
    encoder_layers: tuple[int, ...] = (0, 1, 1, 1)
    decoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    latent_noise: float = 0.1
    latent_penalty: float = 0.01
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
