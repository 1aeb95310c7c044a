"""The distillation of a student: method, losses, discriminator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.config.sections import OptimizerConfig

DistillWeight = Literal["exponential", "sds", "nfsd", "none"]
MethodName = Literal["add", "regression", "ladd", "dmd2"]
FeatureSource = Literal["vision", "teacher", "random"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Frozen features and the trained heads on them.

    Attributes:
        features: "vision" takes a vision model's hidden states, as the paper does;
            "teacher" the teacher's own down and middle blocks at a drawn noise level
            (Source: arXiv:2403.12015, section 3); "random" the same of an untrained network, to
            see what the teacher's are worth.
        vision_model: a local transformers folder or a hub name, of a transformer such as DINOv2 or
            of a convolutional network such as EfficientNet.
        hooks: the vision model's blocks that get a head; a transformer's patch embedding gets one
            as well.
        input_size_px: side of the picture that the vision models are given; rounded down to
            whole patches, or to a multiple of 32. Not in the paper.
        noise_timesteps: range of timesteps drawn for the teacher's features.
        noise_location: with "ladd", places in that range are the sigmoid of a Gaussian with this
            mean, so that a higher one draws noisier timesteps (arXiv:2403.12015, section 4.1,
            which draws from the whole range); the other methods draw evenly.
        noise_scale: that Gaussian's standard deviation.
        condition: what the heads are told: the prompt's vector, the real picture's, or both
            (arXiv:2311.17042, table 1b).
        image_model: the vision model whose class token, or mean over the last cells, describes the
            real picture; None takes the teacher's middle block.
        drop_image_at_noise: how often that description is left out where the student started
            from pure noise and cannot know the picture. Not in the paper.
        augment: differentiable augmentations of what the vision model sees (arXiv:2006.10738).
        head_width: of the heads' hidden layers.
        lr: of the heads. Not in the paper.
        r1_gamma: weight of the penalty on the gradient at the heads' inputs.
    """

    features: FeatureSource = "vision"
    vision_model: str = "facebook/dinov2-small"
    hooks: tuple[int, ...] = (2, 5, 8, 11)
    input_size_px: int = 518
    noise_timesteps: tuple[int, int] = (20, 800)
    noise_location: float = 1.0
    noise_scale: float = 1.0
    condition: Literal["none", "text", "image", "both"] = "both"
    image_model: str | None = "facebook/dinov2-large"
    drop_image_at_noise: float = 1.0
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = (
        "colour",
        "translation",
        "cutout",
    )
    head_width: int = 64
    lr: float = 1e-4
    r1_gamma: float = 1e-5


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors in the place of every weight. Source: arXiv:2106.09685; not in the paper.

    Attributes:
        rank: of the factors; 0 trains every weight of the student.
        alpha: the factors' product is multiplied by alpha / rank; None takes the rank, and
            multiplies by 1.
        target_modules: which linear and convolution layers of the UNet get factors: the ends of
            their names.
    """

    rank: int = 0
    alpha: float | None = None
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class StudentConfig:
    """Distillation of a student. Source: arXiv:2311.17042, section 3, where nothing else is said.

    Attributes:
        method: how to distil; each is a module of distill/methods.
        teacher_source: a local diffusers folder or a hub name; None takes the run's own teacher.
        zero_terminal_snr: how that teacher's schedule is made to end in pure noise; "auto" is
            "input_only" for epsilon and "rescale" for v.
        initialise: where the student's weights start (arXiv:2311.17042, table 1c).
        timesteps: the student's few timesteps, descending; the first must be the last of the
            schedule, where its input is pure noise.
        timestep_weights: how often each is drawn.
        distill_weight: c(t), or "nfsd" for noise-free score distillation with its own target.
        nfsd_scale: of that target's step towards the prompt, in the place of guidance.
        negative_prompt: what bad pictures are called, for "nfsd".
        lambda_distill: weight of the distillation loss.
        teacher_timesteps: range of t drawn for the teacher's target.
        teacher_guidance: classifier-free guidance scale of the teacher's target.
        teacher_steps: in how many steps the teacher makes it (arXiv:2311.17042, table 1f).
        adversarial_share: hold the adversarial loss's gradient on the student's picture at this
            share of the other losses' together, whatever its own size, instead of a fixed weight
            (the paper's, None). Source: arXiv:2012.09841, eq. 7.
        lambda_reconstruct: weight of a plain regression on the real latents, not in the paper
            (0 there). On a small set, where most captions have one right answer, it holds the
            student to it.
        critic_steps: updates of what is trained beside the student per update of the student;
            None takes the method's own: 5 for "dmd2" (arXiv:2405.14867, section 4.2), else 1.
        fake_score_lr: of the second network of "dmd2"; None takes the student's, as the authors'
            code does, without its warm-up and decay.
        lora: train low-rank factors beside the teacher's frozen weights.
    """

    method: MethodName = "add"
    teacher_source: str | None = None
    zero_terminal_snr: Literal["auto", "none", "input_only", "rescale"] = "auto"
    initialise: Literal["teacher", "random"] = "teacher"
    timesteps: tuple[int, ...] = (999, 749, 499, 249)
    timestep_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    distill_weight: DistillWeight = "exponential"
    nfsd_scale: float = 7.5
    negative_prompt: str = "unrealistic, blurry, low quality, out of focus, ugly, dark, gloomy"
    lambda_distill: float = 2.5
    distill_space: Literal["pixel", "latent"] = "pixel"
    lambda_adversarial: float = 1.0
    adversarial_share: float | None = None
    lambda_reconstruct: float = 0.0
    teacher_timesteps: tuple[int, int] = (20, 980)
    teacher_guidance: float = 1.0
    teacher_steps: int = 1
    critic_steps: int | None = None
    fake_score_lr: float | None = None
    ema_decay: float = 0.999
    lora: LoraConfig = field(default_factory=LoraConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-5, beta1=0.0, beta2=0.99)
    )
