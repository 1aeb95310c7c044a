"""Signatures of the Standard Webhooks scheme: `v1`, HMAC-SHA256.

Owns the secrets' form and the three headers. Knows nothing of HTTP or of what is signed.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64


class Signer:
    """Signs with every secret it has, so that receivers can change theirs one after the other."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """Read the secrets.

        Raises:
            ValueError: there is none, or one is malformed; never says what it holds.
        """
        if not secrets:
            raise ValueError("at least one secret is needed to sign with")
        self._keys = tuple(_key(secret) for secret in secrets)

    def headers(self, event_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """The headers of one try; `timestamp_s` is when it is made, in seconds since 1970."""
        signed = b".".join((event_id.encode(), str(timestamp_s).encode(), body))
        digests = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": " ".join(
                f"v1,{base64.b64encode(digest).decode()}" for digest in digests
            ),
        }


def _key(secret: str) -> bytes:
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"a secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"what follows {SECRET_PREFIX} in a secret is base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"a secret holds {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return key
