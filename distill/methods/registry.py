"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import StudentConfig
from distill.methods.add import AdversarialDiffusionDistillation
from distill.methods.adversary import Adversary, Condition
from distill.methods.base import Frozen, Method
from distill.methods.dmd2 import DistributionMatchingDistillation
from distill.methods.ladd import LatentAdversarialDistillation
from distill.methods.regression import Regression
from distill.networks.features import build_embedder, build_features
from distill.networks.levels import Levels


def build_adversary(config: StudentConfig, frozen: Frozen) -> Adversary | None:
    """The discriminator that the config describes, or None where its loss has no weight."""
    if not config.lambda_adversarial:
        return None
    disc, device = config.discriminator, frozen.codec.device
    is_told = disc.condition in ("text", "both")
    levels = None
    if config.method == "ladd":
        levels = Levels(*disc.noise_timesteps, (disc.noise_location, disc.noise_scale))
    return Adversary(
        disc,
        build_features(disc, frozen.teacher, frozen.diffusion, device, levels),
        Condition(
            frozen.pooled_width if is_told else 0,
            build_embedder(disc, frozen.teacher, device),
            levels,
        ),
        frozen,
        last_timestep=frozen.diffusion.num_timesteps - 1,
    )


def _add(config: StudentConfig, frozen: Frozen) -> Method:
    return AdversarialDiffusionDistillation(config, frozen, build_adversary(config, frozen))


def _ladd(config: StudentConfig, frozen: Frozen) -> Method:
    adversary = build_adversary(config, frozen)
    assert adversary is not None
    return LatentAdversarialDistillation(config, adversary)


def _dmd2(config: StudentConfig, frozen: Frozen) -> Method:
    return DistributionMatchingDistillation(config, frozen, build_adversary(config, frozen))


METHODS: dict[str, Callable[[StudentConfig, Frozen], Method]] = {
    "add": _add,
    "regression": Regression,
    "ladd": _ladd,
    "dmd2": _dmd2,
}


def build_method(config: StudentConfig, frozen: Frozen) -> Method:
    """Return the method that the config names."""
    return METHODS[config.method](config, frozen)
