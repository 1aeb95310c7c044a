"""The runtime cache: what TensorRT for RTX compiled on this GPU when a plan was loaded.

Owns the file beside each plan, which begins with the digest of the rest; a damaged one is ignored,
for it only saves time. It has nothing to do with the timing cache of `engines.timings`.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from engines.disk import write_whole
from engines.errors import BackendError

_DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


def read_cache(path: Path) -> bytes | None:
    """What `write_cache` kept, or None where there is no whole file of it."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cache(path: Path, content: bytes) -> None:
    """Keep what a runtime compiled for this GPU, whole or not at all.

    A folder that cannot be written costs the next start its time and nothing else.
    """
    try:
        write_whole(path, hashlib.sha256(content).digest() + content)
    except BackendError as error:
        _log.warning("runtime_cache_not_kept", extra={"reason": str(error)})
