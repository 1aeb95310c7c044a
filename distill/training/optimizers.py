"""The optimizer that a configuration names.

Owns the choice between AdamW's implementations. Knows nothing of what is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from distill.config import ConfigError, OptimizerConfig


def adamw(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    config: OptimizerConfig,
    *,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW over parameters or groups of them; `weight_decay` takes the place of the config's.

    Raises:
        ConfigError: 8 bits are asked for and bitsandbytes is not installed.
    """
    decay = config.weight_decay if weight_decay is None else weight_decay
    betas = (config.beta1, config.beta2)
    if config.bits == 32:
        return torch.optim.AdamW(
            parameters, lr=config.lr, betas=betas, weight_decay=decay, fused=True
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optimizer.bits=8 needs bitsandbytes: pip install 'onestep[adam8bit]'"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=config.lr, betas=betas, weight_decay=decay
    )
    return made
