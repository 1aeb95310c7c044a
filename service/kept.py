"""Pictures that are kept a while to be fetched by address.

Owns their names, how long they live and how much memory they may take; the oldest give way. Serves
one process: an address leads nowhere after a restart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache


@dataclass(frozen=True)
class KeptPicture:
    """An encoded picture with its media type."""

    content: bytes
    media_type: str


class KeptPictures:
    """Pictures under unguessable names, bounded by age and by total size."""

    def __init__(
        self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache: TTLCache[str, KeptPicture] = TTLCache(
            max_bytes, ttl_s, timer=clock, getsizeof=lambda picture: len(picture.content)
        )

    def keep(self, picture: KeptPicture) -> str | None:
        """The picture's name, or None when it alone is larger than what may be kept."""
        # Whoever knows the name may see the picture, so the name is a secret.
        name = secrets.token_urlsafe(24)
        try:
            self._cache[name] = picture
        except ValueError:
            return None
        return name

    def find(self, name: str) -> KeptPicture | None:
        """The picture, unless it was never kept, has grown too old or had to give way."""
        return self._cache.get(name)
