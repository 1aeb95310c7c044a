"""The timing cache: what a compiler measured, kept so that the next build need not measure it.

Owns the file beside the plans. Its first line says which platform measured and what the digest of
the rest is; a damaged or foreign file is ignored, for it only saves time. It has nothing to do with
TensorRT for RTX's runtime cache, which holds compiled kernels on the machine that runs a plan.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.disk import write_whole
from engines.profiles import Platform

TIMINGS_FILE = "timings.cache"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    platform: Platform
    sha256: str


def load_timings(folder: Path, platform: Platform) -> tuple[bytes, str | None]:
    """(the cache, None), or nothing and the reason why what is there is ignored."""
    path = folder / TIMINGS_FILE
    try:
        first, _, content = path.read_bytes().partition(b"\n")
        header = _Header.model_validate_json(first)
    except FileNotFoundError:
        return b"", None
    except (OSError, ValidationError):
        return b"", f"{path} is ignored: it is damaged"
    if hashlib.sha256(content).hexdigest() != header.sha256:
        return b"", f"{path} is ignored: it is damaged"
    if header.platform != platform:
        its = header.platform
        return b"", (
            f"{path} is ignored: it was measured with {its.package} {its.package_version} "
            f"on {its.compute_capability}"
        )
    return content, None


def save_timings(folder: Path, platform: Platform, content: bytes) -> None:
    """Write the cache whole or not at all.

    Raises:
        BackendError: the disk is full or read-only.
    """
    header = _Header(platform=platform, sha256=hashlib.sha256(content).hexdigest())
    write_whole(folder / TIMINGS_FILE, header.model_dump_json().encode() + b"\n" + content)
