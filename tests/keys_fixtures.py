"""API keys for tests: made, written and sent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.api_keys import ApiKey, KeysFile, digest_of, join_key, new_key_id, new_secret

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def make_key(**changes: Any) -> tuple[ApiKey, str]:
    """A key as the file has it, and as its holder sends it."""
    secret = new_secret()
    fields: dict[str, Any] = {
        "id": new_key_id(),
        "name": "test",
        "secret_sha256": digest_of(secret).hex(),
        "created": CREATED,
    }
    key = ApiKey(**(fields | changes))
    return key, join_key(key.id, secret)


def write_keys(path: Path, *keys: ApiKey) -> Path:
    """Write a keys file; returns its path."""
    path.write_text(KeysFile(keys=keys).model_dump_json())
    return path


def bearer(key: str) -> dict[str, str]:
    """The header that the `openai` client sends."""
    return {"authorization": f"Bearer {key}"}
