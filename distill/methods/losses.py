"""The losses of the methods, as functions of tensors.

Source: arXiv:2311.17042, section 3, where nothing else is said. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from distill.config import DistillWeight

# Shape suffixes: B batch, C channel, h/w cells of a feature map.


def hinge_discriminator(
    real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Hinge loss, summed over heads, averaged over batch and cells (eq. 3 without R1)."""
    return torch.stack(
        [
            functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
            for real, fake in zip(real_logits, fake_logits, strict=True)
        ]
    ).sum()


def hinge_generator(fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Minus the logits of the student's pictures, summed over heads (eq. 2)."""
    return -torch.stack([fake.mean() for fake in fake_logits]).sum()


def r1_penalty(
    real_logits: Sequence[torch.Tensor], real_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Squared gradient of the logits with respect to the heads' inputs, not to pixels.

    Summed over the features' channels and cells, averaged over the batch, summed over heads.
    The features must require gradients.
    """
    gradients = torch.autograd.grad(
        [logits.sum() for logits in real_logits], real_features, create_graph=True
    )
    return torch.stack([g.pow(2).flatten(1).sum(1).mean() for g in gradients]).sum()


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, weight_B: torch.Tensor
) -> torch.Tensor:
    """Weighted mean squared distance to the teacher's denoised picture (eq. 4).

    Args:
        student: (B, ...), with gradients.
        teacher: the same shape, without.
        weight_B: c(t) of each sample.
    """
    distance_B = (student - teacher).pow(2).flatten(1).mean(1)
    return (weight_B * distance_B).mean()


def distillation_weight(
    kind: DistillWeight, alpha_B: torch.Tensor, sigma_B: torch.Tensor
) -> torch.Tensor:
    """c(t) of eq. 4.

    "exponential" is alpha_t, so that noisier opinions of the teacher count for less. "sds" makes
    the gradient on the picture that of score distillation, w(t) (eps_teacher - eps), with
    w(t) = sigma_t^2 (Source: arXiv:2311.17042, appendix A; arXiv:2209.14988, eq. 3). "nfsd" weighs
    its own target alike. "none" is 1.
    """
    if kind == "none":
        return torch.ones_like(alpha_B)
    if kind == "exponential":
        return alpha_B
    return alpha_B / (2 * sigma_B) * sigma_B**2


def noise_free_residual(
    eps_cond: torch.Tensor,
    eps_empty: torch.Tensor,
    eps_negative: torch.Tensor,
    timestep_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """What noise-free score distillation puts in the place of (eps_teacher - eps).

    The teacher's guess of the noise is left out of the residual: near the clean picture the
    unconditional prediction has next to none, and further away the prediction for a prompt of
    bad pictures carries the same. Source: arXiv:2310.17590, section 4.

    Args:
        eps_cond: the teacher's noise prediction with the prompt, (B, C, h, w).
        eps_empty: without a prompt.
        eps_negative: with the negative prompt.
        timestep_B: of 1000; "near" is below 200.
        scale: of the step towards the prompt.
    """
    is_near = (timestep_B < 200).view(-1, 1, 1, 1)
    towards_real = torch.where(is_near, eps_empty, eps_empty - eps_negative)
    return towards_real + scale * (eps_cond - eps_empty)


def matching_direction(
    made_BChw: torch.Tensor, fake_BChw: torch.Tensor, real_BChw: torch.Tensor
) -> torch.Tensor:
    """Where the student's pictures are more likely than the teacher's, picture by picture.

    The difference of two scores, written as that of two x0 for one noisy latent, over the mean
    distance between the picture and the teacher's x0, which evens out the noise levels.
    Source: arXiv:2311.18828, eq. 7 and 8, which arXiv:2405.14867 keeps.

    Args:
        made_BChw: the student's latents.
        fake_BChw: x0 of the network that follows the student's pictures.
        real_BChw: x0 of the teacher.
    """
    size_B = (made_BChw - real_BChw).abs().flatten(1).mean(1).clamp_min(1e-12)
    return (fake_BChw - real_BChw) / size_B.view(-1, 1, 1, 1)


def distribution_matching(made_BChw: torch.Tensor, direction_BChw: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient on the latents is the direction over their number of entries.

    Its value is half the direction's mean square: how far the two scores are apart, not how far
    the training has come. Source: arXiv:2311.18828, algorithm 2.
    """
    aim_BChw = (made_BChw - direction_BChw).detach()
    loss: torch.Tensor = 0.5 * (made_BChw - aim_BChw).pow(2).mean()
    return loss
