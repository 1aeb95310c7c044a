"""What precomputed files depend on, as hashes of content.

Owns telling one encoder, set or teacher from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import nn

from distill.dataset import Source
from distill.teachers.base import Teacher

_PROBE = "A red fox, 3 stars & a café; 64 px (éà)"


def fingerprints(source: Source | None, teacher: Teacher) -> dict[str, str]:
    """What the shards depend on, each as a hash of its content."""
    made_of = {
        "autoencoder": weights_hash(
            teacher.codec.model, repr((teacher.codec.scale, teacher.codec.shift))
        ),
        "text encoder": weights_hash(teacher.text, repr(teacher.text.tokens([_PROBE]).tolist())),
    }
    return made_of if source is None else {"source": source.fingerprint, **made_of}


def first_difference(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Name of a part whose fingerprint changed; parts that are not named now do not count."""
    return next((name for name in now if before.get(name) != now[name]), None)


def weights_hash(owner: object, settings: str) -> str:
    """Hash of a network's weights, or of all networks that an object holds, and of settings."""
    modules = [owner] if isinstance(owner, nn.Module) else list(vars(owner).values())
    known = sha256(settings.encode())
    for module in modules:
        if isinstance(module, nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                known.update(plain.view(torch.uint8).numpy().tobytes())
    return known.hexdigest()
