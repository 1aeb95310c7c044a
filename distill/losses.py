"""The losses of Adversarial Diffusion Distillation, as functions of tensors.

Source: arXiv:2311.17042, section 3. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

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
