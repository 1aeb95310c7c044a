"""Settings: the only place that reads the environment (prefix ONESTEP_).

Owns names, ranges and defaults. A wrong value or an unknown ONESTEP_ name stops the start with the
field's name. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import StartError

ENV_PREFIX = "ONESTEP_"
# What clients on the same machine keep their key in; the copied commands of the page name it.
_CLIENTS_NAMES = frozenset({f"{ENV_PREFIX}API_KEY"})
_ORIGIN = re.compile(r"https?://[^/\s?#@]+")


def _split_at_commas(value: object) -> object:
    """A list as it stands in an environment variable."""
    if not isinstance(value, str):
        return value
    return tuple(part for item in value.split(",") if (part := item.strip()))


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        # A path or a slash at the end would never equal what a browser sends.
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin: write https://host or https://host:port")
    return origins


# NoDecode: pydantic-settings would want JSON.
_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_at_commas)]
_Origins = Annotated[_Names, AfterValidator(_check_origins)]
_Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_at_commas)]
_Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_at_commas)]


class Settings(BaseSettings):
    """Everything an operator may choose."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 picks a free port")
    model: _Paths = Field(
        default=(Path("models/emoji"),), min_length=1, description="bundle folders, by commas"
    )
    backend: str | None = Field(default=None, description="engine backend; unset: the bundle's")
    allow_failed_check: bool = Field(default=False, description="serve what failed its check")
    num_threads: int | None = Field(default=None, ge=1, description="engine threads; unset: all")
    max_batch_size: int = Field(default=8, ge=1, le=256)
    max_queue_depth: int = Field(default=256, ge=1, description="accepted jobs without an answer")
    redis_url: SecretStr | None = Field(
        default=None, description="where API and worker processes meet"
    )
    lease_s: float = Field(
        default=10.0, ge=0.1, description="a job is handed out again after a worker's silence"
    )
    max_deliveries: int = Field(default=3, ge=1, description="then a job fails for good")
    max_run_s: float = Field(default=60.0, gt=0, description="a longer run of the engine hangs")
    deadline_s: float = Field(default=30.0, gt=0, description="from arrival to answer")
    job_deadline_s: float = Field(
        default=600.0, gt=0, le=86400, description="the same of jobs that nobody waits for"
    )
    body_timeout_s: float = Field(default=20.0, gt=0, description="for a body to arrive")
    max_body_bytes: int = Field(default=65536, ge=1024, description="where no picture may come")
    max_upload_bytes: int = Field(default=2**23, ge=1024, description="of a body with a picture")
    max_upload_px: int = Field(default=16_000_000, ge=4096, description="of a picture that comes")
    max_held_body_bytes: int = Field(default=2**27, ge=1024, description="of all open requests")
    num_picture_decoders: int = Field(default=2, ge=1, description="processes, started when used")
    public_url: str | None = Field(
        default=None, description="what addresses of pictures begin with; unset: as requested"
    )
    result_ttl_s: float = Field(
        default=3600.0, gt=0, le=7 * 86400, description="how long a job's picture is kept"
    )
    max_kept_bytes: int = Field(
        default=2**28, ge=2**24, description="of kept pictures, where the queue is in memory"
    )
    max_event_streams: int = Field(
        default=1000, ge=0, description="clients that follow a job at a time; 0 offers none"
    )
    webhooks: bool = Field(default=False, description="tell another service how a job ended")
    webhook_secrets: _Secrets = Field(
        default=(), description="whsec_..., by commas; deliveries are signed with each"
    )
    webhook_hosts: _Names = Field(
        default=(),
        description="HOST[:PORT][=NETWORK], by commas: the only ones that may be called; "
        "a network names where a host may lie inside; empty: any public host",
    )
    webhook_allow_http: bool = Field(default=False, description="also without TLS")
    webhook_timeout_s: float = Field(default=10.0, gt=0, le=60, description="of one try, in all")
    webhook_max_tries: int = Field(default=6, ge=1, le=20)
    realtime_max_connections: int = Field(default=256, ge=0, description="0 offers none")
    realtime_max_fps: float = Field(
        default=60.0, gt=0, description="messages that a connection may have parsed per second"
    )
    realtime_max_message_bytes: int = Field(default=2**20, ge=1024)
    realtime_idle_s: float = Field(
        default=300.0, gt=0, description="a connection that sends or takes nothing is closed"
    )
    num_encode_threads: int = Field(default=2, ge=1)
    keys_file: Path | None = Field(default=None, description="API keys; unset: none are asked")
    rate_pixel_steps_per_s: int = Field(default=0, ge=0, le=2**31, description="0: no limit")
    burst_pixel_steps: int = Field(default=0, ge=0, le=2**31, description="0: 10 s of the rate")
    daily_pixel_steps: int = Field(default=0, ge=0, le=2**50, description="0: no limit")
    max_open_pictures: int = Field(default=0, ge=0, description="per owner; 0: no limit")
    cors_origins: _Origins = Field(
        default=(), description="pages of which origins may call, separated by commas; * for all"
    )
    docs: bool = Field(default=True, description="serve the page /docs")
    admin_host: str = "127.0.0.1"
    admin_port: int | None = Field(
        default=None, ge=0, le=65535, description="of /metrics; unset: the main port has it"
    )
    otel_endpoint: str | None = Field(
        default=None, description="of an OTLP receiver over HTTP; unset: no traces"
    )
    otel_sample_ratio: float = Field(default=1.0, ge=0, le=1, description="of traces begun here")
    gpu_hourly_cost: float = Field(
        default=0.0, ge=0, description="of a worker, in any currency; for the cost of a picture"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (those that are not None) on top.

    Raises:
        StartError: a value is out of range or a name is unknown.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known | _CLIENTS_NAMES:
            raise StartError(f"{name}: no such setting; known are {', '.join(sorted(known))}")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        raise StartError(f"setting {field} ({ENV_PREFIX}{field.upper()}): {first['msg']}") from None
