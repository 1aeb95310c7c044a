"""An adapter out of two finished networks: what a student has beyond its teacher, at a rank.

Owns the reading of both networks, the best factors of each layer's difference, and how much of it
they keep. Knows nothing of runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn

from distill.config import ConfigError
from distill.networks.lora import LAYERS, LORA_FILE, save_lora

# Shape suffixes: O outputs, N inputs times cells of the kernel, R rank.

_NUM_WORST = 5


@dataclass(frozen=True)
class LayerShare:
    """One layer's squared difference, and what of it the factors hold."""

    name: str
    squared: float
    kept: float


@dataclass(frozen=True)
class Extraction:
    """What was written.

    Attributes:
        folder: holds the adapter.
        rank: of every layer's factors.
        layers: those that differ.
        squared_elsewhere: squared difference of the weights that no adapter holds: biases, norms.
    """

    folder: Path
    rank: int
    layers: tuple[LayerShare, ...]
    squared_elsewhere: float

    @property
    def squared(self) -> float:
        """Squared difference of all weights."""
        return sum(layer.squared for layer in self.layers) + self.squared_elsewhere

    @property
    def kept(self) -> float:
        """Share of it that the adapter holds."""
        return sum(layer.kept for layer in self.layers) / self.squared

    def lines(self) -> Iterator[str]:
        """What a person reads: the shares, and the layers that lose the most."""
        yield (
            f"extract-lora: rank {self.rank} keeps {self.kept:.2%} of the squared difference, "
            f"in {len(self.layers)} layers"
        )
        share = self.squared_elsewhere / self.squared
        yield f"  no adapter holds {share:.2%} of it: biases and norms"
        worst = sorted(self.layers, key=lambda layer: layer.kept - layer.squared)[:_NUM_WORST]
        for layer in worst:
            yield (
                f"  {layer.name}: {layer.kept / layer.squared:.2%} kept of its own, which is "
                f"{layer.squared / self.squared:.2%} of the whole"
            )
        yield f"  {self.folder} is ready for `load_lora_weights` of a diffusers pipeline"


def extract_lora(teacher: Path, student: Path, rank: int, out: Path | None) -> Extraction:
    """Write the adapter of a rank that brings a teacher closest to a student.

    Args:
        teacher: a diffusers folder, or its unet/.
        student: the same, of a network of the same architecture.
        rank: of every layer's factors; what a smaller layer cannot use is zero.
        out: folder to write; None takes the student's name with "-lora" at its end.

    Raises:
        ConfigError: there is no network, the two do not fit or do not differ, or `out` holds
            something else.
    """
    if rank < 1:
        raise ConfigError(f"--rank must be at least 1, got {rank}")
    place = student.resolve()
    out = place.with_name(f"{place.name}-lora") if out is None else out
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {LORA_FILE}):
        raise ConfigError(f"--out {out}: exists and is no adapter; name another folder")
    before, after = _read_unet(teacher, "--teacher"), _read_unet(student, "--student")
    _refuse_other_form(before, after, teacher, student)
    _refuse_not_finite(before, f"--teacher {teacher}")
    _refuse_not_finite(after, f"--student {student}")
    state, layers = _factors(before, after, rank)
    if not layers:
        raise ConfigError(
            f"--student {student}: no linear or convolution layer differs from --teacher "
            f"{teacher}: there is nothing to extract"
        )
    held = {f"{layer.name}.weight" for layer in layers}
    weights = dict(before.named_parameters())
    elsewhere = sum(
        _squared(new.detach() - weights[name].detach())
        for name, new in after.named_parameters()
        if name not in held
    )
    _write_whole(out, state)
    return Extraction(out, rank, layers, elsewhere)


def _read_unet(folder: Path, option: str) -> UNet2DConditionModel:
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
        if settings["_class_name"] != UNet2DConditionModel.__name__:
            raise ValueError(f"{place} is a {settings['_class_name']}")
        return UNet2DConditionModel.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{option} {folder}: no UNet can be read there ({reason}): give a diffusers folder "
            "that has unet/config.json and its weights"
        ) from error


def _refuse_other_form(before: nn.Module, after: nn.Module, teacher: Path, student: Path) -> None:
    shapes, others = (
        {name: tuple(value.shape) for name, value in unet.state_dict().items()}
        for unet in (before, after)
    )
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            raise ConfigError(
                f"--student {student} is of another architecture than --teacher {teacher}: {name} "
                f"has shape {others.get(name)} in one and {shapes.get(name)} in the other; give "
                "the teacher that the student was made from"
            )


def _refuse_not_finite(unet: nn.Module, source: str) -> None:
    for name, parameter in unet.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"{source}: {name} holds values that are not finite")


@torch.no_grad()
def _factors(
    before: nn.Module, after: nn.Module, rank: int
) -> tuple[dict[str, torch.Tensor], tuple[LayerShare, ...]]:
    state, shares = {}, []
    old = dict(before.named_modules())
    for name, layer in after.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        difference = layer.weight - old[name].weight
        squared = _squared(difference)
        if not squared:
            continue
        down_RN, up_OR, kept = best_factors(difference.flatten(1), rank)
        kernel = difference.shape[2:]
        state[f"{name}.lora_A.weight"] = down_RN.reshape(rank, *difference.shape[1:]).float()
        state[f"{name}.lora_B.weight"] = up_OR.reshape(*up_OR.shape, *(1 for _ in kernel)).float()
        shares.append(LayerShare(name, squared, min(kept, squared)))
    return state, tuple(shares)


def best_factors(matrix_ON: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The product of a rank that is closest to a matrix: its truncated singular values.

    By the eigenvectors of the smaller of the matrix's two products with itself, in float64, which
    costs a fraction of a singular value decomposition. Both factors take half of each singular
    value, so that neither is too small for half precision; past the matrix's own rank they are
    zero. Source: Eckart and Young, Psychometrika 1 (1936).

    Returns:
        down_RN and up_OR, float64, and the squared size of their product.
    """
    matrix_ON = matrix_ON.double()
    is_wide = matrix_ON.shape[0] <= matrix_ON.shape[1]
    gram = matrix_ON @ matrix_ON.T if is_wide else matrix_ON.T @ matrix_ON
    squares, vectors = torch.linalg.eigh(gram)
    num = min(rank, len(squares))
    squares_R, basis = squares[-num:].flip(0).clamp_min(0), vectors[:, -num:].flip(1)
    down_RN = basis.T @ matrix_ON if is_wide else basis.T
    up_OR = basis if is_wide else matrix_ON @ basis
    # One factor is orthonormal, the other carries the singular values.
    root_R = squares_R.pow(0.25)
    halved_R = torch.where(root_R > 0, 1 / root_R, 0)
    down_RN = down_RN * (halved_R if is_wide else root_R)[:, None]
    up_OR = up_OR * (root_R if is_wide else halved_R)
    missing = rank - num
    down_RN = nn.functional.pad(down_RN, (0, 0, 0, missing))
    return down_RN, nn.functional.pad(up_OR, (0, missing)), squares_R.sum().item()


def _squared(difference: torch.Tensor) -> float:
    return difference.double().pow(2).sum().item()


def _write_whole(out: Path, state: dict[str, torch.Tensor]) -> None:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_lora(partial, state)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
