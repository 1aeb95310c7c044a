"""Settings: the only place that reads the environment (prefix ONESTEP_).

Owns names, ranges and defaults. A wrong value or an unknown ONESTEP_ name stops the start with the
field's name. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import StartError

ENV_PREFIX = "ONESTEP_"


class Settings(BaseSettings):
    """Everything an operator may choose."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 picks a free port")
    model: Path = Field(default=Path("models/emoji"), description="bundle folder")
    backend: str | None = Field(default=None, description="engine backend; unset: the bundle's")
    allow_failed_check: bool = Field(default=False, description="serve what failed its check")
    num_threads: int | None = Field(default=None, ge=1, description="engine threads; unset: all")
    max_batch_size: int = Field(default=8, ge=1, le=256)
    max_queue_depth: int = Field(default=256, ge=1, description="accepted jobs without an answer")
    deadline_s: float = Field(default=30.0, gt=0, description="from arrival to answer")
    max_body_bytes: int = Field(default=65536, ge=1024, description="where no picture may come")
    max_upload_bytes: int = Field(default=2**23, ge=1024, description="of a body with a picture")
    max_upload_px: int = Field(default=16_000_000, ge=4096, description="of a picture that comes")
    max_held_body_bytes: int = Field(default=2**27, ge=1024, description="of all open requests")
    num_picture_decoders: int = Field(default=2, ge=1, description="processes, started when used")
    public_url: str | None = Field(
        default=None, description="what addresses of pictures begin with; unset: as requested"
    )
    image_ttl_s: float = Field(default=3600.0, gt=0, description="how long an address holds")
    max_kept_bytes: int = Field(default=2**28, ge=0, description="of pictures with an address")
    realtime_max_connections: int = Field(default=256, ge=0, description="0 offers none")
    realtime_max_fps: float = Field(
        default=60.0, gt=0, description="messages that a connection may have parsed per second"
    )
    realtime_max_message_bytes: int = Field(default=2**20, ge=1024)
    realtime_idle_s: float = Field(
        default=300.0, gt=0, description="a connection that sends or takes nothing is closed"
    )
    num_encode_threads: int = Field(default=2, ge=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (those that are not None) on top.

    Raises:
        StartError: a value is out of range or a name is unknown.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            raise StartError(f"{name}: no such setting; known are {', '.join(sorted(known))}")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        raise StartError(f"setting {field} ({ENV_PREFIX}{field.upper()}): {first['msg']}") from None
