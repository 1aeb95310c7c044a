"""An optimizer's step on a clipped gradient, left out where the gradient is not finite.

One bad batch must not spoil weights and moments for good. Knows nothing of losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def clipped_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float
) -> dict[str, float]:
    """Clip the gradients' norm and step, unless it is infinite or not a number.

    Returns:
        `grad_norm` before clipping (0 when skipped), and `skipped`, 0 or 1.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm).item()
    is_finite = math.isfinite(norm)
    if is_finite:
        optimizer.step()
    return {"grad_norm": norm if is_finite else 0.0, "skipped": float(not is_finite)}
