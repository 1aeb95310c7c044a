"""Differentiable augmentation of what the discriminator sees.

Owns brightness, saturation and contrast, shifts, and cut-out squares, each a function of numbers
drawn elsewhere. With few pictures they keep the heads from knowing each one by heart. Source:
arXiv:2006.10738, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from distill.draws import Draws

# Shape suffixes: B batch, C channel, H/W pixels, S numbers of a sample.

_SHIFT, _HOLE = 0.125, 0.5  # of the picture's side


def colour(images_BCHW: torch.Tensor, u_BS: torch.Tensor) -> torch.Tensor:
    """Brightness by up to half of 1, saturation by 0 to 2, contrast by 0.5 to 1.5.

    Args:
        images_BCHW: pixels in [-1, 1].
        u_BS: three numbers in [0, 1) per picture; 0.5 changes nothing.
    """
    brightness, saturation, contrast = u_BS.view(len(u_BS), -1, 1, 1, 1).unbind(1)
    images_BCHW = images_BCHW + (brightness - 0.5)
    grey = images_BCHW.mean(1, keepdim=True)
    images_BCHW = grey + (images_BCHW - grey) * (2 * saturation)
    mean = images_BCHW.mean((1, 2, 3), keepdim=True)
    return mean + (images_BCHW - mean) * (contrast + 0.5)


def translation(images_BCHW: torch.Tensor, u_BS: torch.Tensor) -> torch.Tensor:
    """Shift by up to an eighth of the side along each axis; what comes in is grey (0).

    Args:
        images_BCHW: pixels in [-1, 1].
        u_BS: two numbers in [0, 1) per picture, down and right; 0.5 shifts by nothing.
    """
    height, width = images_BCHW.shape[2:]
    rows, is_row = _shifted(u_BS[:, 0], height)
    columns, is_column = _shifted(u_BS[:, 1], width)
    index = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None, None]
    moved = images_BCHW.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    inside = (is_row[:, :, None] & is_column[:, None, :])[..., None]
    return (moved * inside).permute(0, 3, 1, 2)


def _shifted(u_B: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each line comes from, and whether that lies in the picture."""
    most = int(side * _SHIFT + 0.5)
    by_B = (u_B * (2 * most + 1)).floor().long() - most
    source = torch.arange(side, device=u_B.device)[None] - by_B[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def cutout(images_BCHW: torch.Tensor, u_BS: torch.Tensor) -> torch.Tensor:
    """Grey out (0) a square of half the side around a random place, cut at the border.

    Args:
        images_BCHW: pixels in [-1, 1].
        u_BS: two numbers in [0, 1) per picture: the centre's row and column.
    """
    height, width = images_BCHW.shape[2:]
    is_row = _in_hole(u_BS[:, 0], height)
    is_column = _in_hole(u_BS[:, 1], width)
    hole = is_row[:, None, :, None] & is_column[:, None, None, :]
    return images_BCHW.masked_fill(hole, 0.0)


def _in_hole(u_B: torch.Tensor, side: int) -> torch.Tensor:
    half = int(side * _HOLE + 0.5) / 2
    line = torch.arange(side, device=u_B.device)[None] + 0.5
    return (line - (u_B * side)[:, None]).abs() < half


_AUGMENTATIONS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], int]] = {
    "colour": (colour, 3),
    "translation": (translation, 2),
    "cutout": (cutout, 2),
}


def augmented(
    images_BCHW: torch.Tensor, names: Sequence[str], draws: Draws, kind: str
) -> torch.Tensor:
    """The named augmentations one after the other, gradients kept.

    Args:
        images_BCHW: pixels in [-1, 1].
        names: of "colour", "translation", "cutout".
        draws: of the batch.
        kind: keeps the draws of real and fake apart.
    """
    for name in names:
        change, num = _AUGMENTATIONS[name]
        images_BCHW = change(images_BCHW, draws.uniform(f"augment_{name}_{kind}", (num,)))
    return images_BCHW
