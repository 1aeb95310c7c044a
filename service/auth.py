"""Who sends a request: from a key to a principal.

Owns the comparison with the known keys and how a changed keys file is followed while serving. An
error tells a key's holder what is wrong with it, and everyone else nothing. Knows no route and no
middleware.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.api_keys import ApiKey, KeysFile, digest_of, load_keys, new_secret, split_key
from service.errors import StartError, Unauthorized
from service.principal import Allowance, Principal
from service.telemetry import log_event

# A revoked key is refused at the latest this long after its file was written.
LOOK_EVERY_S = 1.0
NEEDED = "an API key is needed: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`"
UNKNOWN = "this API key is not known here"

_Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """A key as it is compared: bytes and seconds instead of text and dates."""

    digest: bytes
    previous_digest: bytes
    previous_until_s: float
    expires_s: float
    is_revoked: bool
    principal: Principal


def _nobody() -> _Known:
    """A key that nobody holds: its secret is forgotten as soon as it is drawn."""
    digest = digest_of(new_secret())
    return _Known(digest, digest, 0.0, 0.0, True, Principal())


_NOBODY = _nobody()


class KeyRing:
    """The keys of one file, read again when it changes.

    Args:
        path: the keys file.
        defaults: limits of keys that name none.
        now_s: the wall clock, which dates in the file are compared with.
        clock: a clock that never jumps, for when to look at the file.

    Raises:
        StartError: the file is missing or damaged. Later on such a file changes nothing: the last
            good keys stay, and the log says so.
    """

    def __init__(
        self,
        path: Path,
        defaults: Allowance,
        *,
        now_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._defaults = defaults
        self._now_s = now_s
        self._clock = clock
        self._signature = _signature(path)
        self._known = self._compile(load_keys(path))
        self._next_look_s = clock() + LOOK_EVERY_S

    async def principal(self, credential: str) -> Principal:
        """The holder of a key.

        Raises:
            Unauthorized: it is no key of this file, or not good any longer.
        """
        if self._clock() >= self._next_look_s:
            await self._look()
        parts = split_key(credential)
        if parts is None:
            raise Unauthorized(UNKNOWN)
        key_id, secret = parts
        digest = digest_of(secret)
        # Where the id is unknown there is as much to compare as where it is known.
        known = self._known.get(key_id, _NOBODY)
        is_current = hmac.compare_digest(digest, known.digest)
        is_previous = hmac.compare_digest(digest, known.previous_digest)
        if not (is_current or is_previous):
            raise Unauthorized(UNKNOWN)
        now_s = self._now_s()
        if known.is_revoked:
            raise Unauthorized("this API key was revoked: ask the operator for another")
        if now_s >= known.expires_s:
            raise Unauthorized("this API key has expired: ask the operator for another")
        if not is_current and now_s >= known.previous_until_s:
            raise Unauthorized("this API key was replaced by a newer one: use that")
        return known.principal

    async def _look(self) -> None:
        """Read the file again if it is not the one that was read last."""
        # Set first: requests that arrive while the file is read go on with the keys there are.
        self._next_look_s = self._clock() + LOOK_EVERY_S
        signature = _signature(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._known = self._compile(await asyncio.to_thread(load_keys, self._path))
        except StartError as error:
            log_event("keys_file_refused", level=logging.ERROR, reason=str(error))
        else:
            log_event("keys_file_read", num_keys=len(self._known))

    def _compile(self, content: KeysFile) -> dict[str, _Known]:
        return {key.id: _known(key, self._defaults) for key in content.keys}


def _known(key: ApiKey, defaults: Allowance) -> _Known:
    previous = key.previous
    return _Known(
        digest=bytes.fromhex(key.secret_sha256),
        previous_digest=bytes.fromhex(previous.secret_sha256) if previous else _NOBODY.digest,
        previous_until_s=previous.until.timestamp() if previous else 0.0,
        expires_s=key.expires.timestamp() if key.expires else float("inf"),
        is_revoked=key.is_revoked,
        principal=key.principal(defaults),
    )


def _signature(path: Path) -> _Signature | None:
    """What changes when the file is replaced or written; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
