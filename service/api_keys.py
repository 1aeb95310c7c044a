"""API keys and the file that lists them.

Owns the form of a key, `os_<id>.<secret>`, what the file says of each and how a damaged one is
refused. A secret exists in the hands of its holder only: the file has its SHA-256, which is enough
for 256 random bits; slow hashes are for what people can remember. Knows neither requests nor how
the file is changed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import StartError
from service.principal import MAX_BURST_PIXEL_STEPS, Allowance, Principal
from service.schemas import PRIORITIES, PriorityName

KEY_PREFIX = "os_"
_SECRET_BYTES = 32
_ID_BYTES = 8
_KEY = re.compile(r"os_([A-Za-z0-9]{12,64})\.([A-Za-z0-9_-]{43,256})")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**50)]


class PreviousSecret(BaseModel):
    """The secret before the last rotation, good for a while longer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_sha256: Digest
    until: AwareDatetime


class ApiKey(BaseModel):
    """What is known of one key. A limit that is None is the service's default, 0 is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{12,64}$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    secret_sha256: Digest
    created: AwareDatetime
    expires: AwareDatetime | None = None
    previous: PreviousSecret | None = None
    models: tuple[str, ...] | None = None
    priority: PriorityName = "interactive"
    rate_pixel_steps_per_s: Annotated[int, Field(ge=0, le=MAX_BURST_PIXEL_STEPS)] | None = None
    burst_pixel_steps: Annotated[int, Field(ge=0, le=MAX_BURST_PIXEL_STEPS)] | None = None
    daily_pixel_steps: Count | None = None
    max_open_pictures: Count | None = None
    is_revoked: bool = False

    def principal(self, defaults: Allowance) -> Principal:
        """Who the holder is; what the key leaves open comes from `defaults`."""
        rate, burst = self.rate_pixel_steps_per_s, self.burst_pixel_steps
        if burst is None:
            # The default burst belongs to the default rate.
            burst = defaults.burst_pixel_steps if rate is None else 0
        daily, max_open = self.daily_pixel_steps, self.max_open_pictures
        return Principal(
            owner=self.id,
            models=self.models,
            priority=PRIORITIES[self.priority],
            allowance=Allowance(
                defaults.rate_pixel_steps_per_s if rate is None else rate,
                burst,
                defaults.daily_pixel_steps if daily is None else daily,
                defaults.max_open_pictures if max_open is None else max_open,
            ),
        )


class KeysFile(BaseModel):
    """The file as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [key.id for key in self.keys]
        if len(set(ids)) != len(ids):
            raise ValueError("two keys have the same id")
        return self

    def find(self, key_id: str) -> ApiKey | None:
        """The key of this id."""
        return next((key for key in self.keys if key.id == key_id), None)

    def with_key(self, changed: ApiKey) -> KeysFile:
        """The same keys with this one added, or in the place of the one of its id."""
        if self.find(changed.id) is None:
            keys: Sequence[ApiKey] = (*self.keys, changed)
        else:
            keys = [changed if key.id == changed.id else key for key in self.keys]
        return KeysFile(keys=tuple(keys))


def load_keys(path: Path) -> KeysFile:
    """Read the file.

    Raises:
        StartError: it is missing, unreadable or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartError(
            f"{path}: the keys file cannot be read ({error.strerror}); "
            "`onestep keys add` makes one, unset ONESTEP_KEYS_FILE asks for no keys"
        ) from error
    try:
        return KeysFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise StartError(
            f"{path}: the keys file is damaged ({place}: {first['msg']}); mend it or restore a copy"
        ) from None


def new_secret() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def new_key_id() -> str:
    """An id that no other key has."""
    return secrets.token_hex(_ID_BYTES)


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("ascii")).digest()


def join_key(key_id: str, secret: str) -> str:
    """The key as its holder sends it."""
    return f"{KEY_PREFIX}{key_id}.{secret}"


def split_key(text: str) -> tuple[str, str] | None:
    """Id and secret, or None where this is no key."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def rotated(key: ApiKey, secret: str, until: datetime) -> ApiKey:
    """The key with another secret; the one before stays good until then."""
    previous = PreviousSecret(secret_sha256=key.secret_sha256, until=until)
    return key.model_copy(update={"secret_sha256": digest_of(secret).hex(), "previous": previous})
