"""`onestep keys add | list | rotate | revoke`: the keys file, by hand.

Owns the arguments and the printed lines. A new key goes to standard output, alone and once, so that
a shell can take it; all else that is said about it goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.api_keys import (
    ApiKey,
    KeysFile,
    digest_of,
    join_key,
    load_keys,
    new_key_id,
    new_secret,
    rotated,
)
from service.commands.key_store import change_keys
from service.errors import StartError
from service.schemas import PRIORITIES
from service.settings import load_settings

DEFAULT_OVERLAP_H = 24.0


def add_parser(commands: Any) -> None:
    """Add `keys` to the subparsers of the command `onestep`."""
    command = commands.add_parser("keys", help="add, list, rotate and revoke API keys")
    actions = command.add_subparsers(dest="action", required=True)

    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="whose it is; for people")
    add.add_argument("--models", help="names it may use, separated by commas (default: all)")
    add.add_argument("--priority", choices=list(PRIORITIES), default="interactive")
    add.add_argument("--rate", type=int, help="pixel-steps per second; 0 for no limit")
    add.add_argument("--burst", type=int, help="pixel-steps at once (default: 10 s of the rate)")
    add.add_argument("--daily", type=int, help="pixel-steps from midnight to midnight, UTC")
    add.add_argument("--max-open", type=int, help="pictures that may be drawn at a time")
    add.add_argument("--days", type=float, help="how long it is good (default: for ever)")

    actions.add_parser("list", help="list keys; secrets are not kept and cannot be shown")

    rotate = actions.add_parser("rotate", help="give a key a new secret and print it, once")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-hours",
        type=float,
        default=DEFAULT_OVERLAP_H,
        help=f"how long the old secret stays good (default {DEFAULT_OVERLAP_H:.0f})",
    )
    revoke = actions.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("id")
    for action in actions.choices.values():
        action.add_argument("--file", type=Path, help="keys file (default: ONESTEP_KEYS_FILE)")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status.

    Raises:
        StartError: no file is named, it is damaged or cannot be written, or no such key.
    """
    path = arguments.file or load_settings().keys_file
    if path is None:
        raise StartError("no keys file: name one with --file or ONESTEP_KEYS_FILE")
    _ACTIONS[arguments.action](path, arguments)
    return 0


def _add(path: Path, arguments: argparse.Namespace) -> None:
    secret, now = new_secret(), _now()
    fields = {
        "id": new_key_id(),
        "name": arguments.name,
        "secret_sha256": digest_of(secret).hex(),
        "created": now,
        "expires": None if arguments.days is None else now + _span("--days", days=arguments.days),
        "models": _names(arguments.models),
        "priority": arguments.priority,
        "rate_pixel_steps_per_s": arguments.rate,
        "burst_pixel_steps": arguments.burst,
        "daily_pixel_steps": arguments.daily,
        "max_open_pictures": arguments.max_open,
    }
    try:
        key = ApiKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise StartError(f"{first['loc'][0]}: {first['msg']}") from None
    change_keys(path, lambda keys: keys.with_key(key))
    _hand_over(key, secret, "it is shown this once and kept nowhere")


def _list(path: Path, arguments: argparse.Namespace) -> None:
    rows = [("ID", "NAME", "STATE", "CREATED", "MODELS", "PRIORITY", "PIXEL-STEPS/S", "DAILY")]
    for key in load_keys(path).keys:
        rows.append(
            (
                *(key.id, key.name, _state(key), f"{key.created:%Y-%m-%d}"),
                "all" if key.models is None else ",".join(key.models),
                *(key.priority, _limit(key.rate_pixel_steps_per_s), _limit(key.daily_pixel_steps)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def _rotate(path: Path, arguments: argparse.Namespace) -> None:
    secret, until = new_secret(), _now() + _span("--overlap-hours", hours=arguments.overlap_hours)
    key = _change_one(path, arguments.id, lambda key: rotated(key, secret, until))
    _hand_over(key, secret, f"the secret before it stays good until {until:%Y-%m-%d %H:%M} UTC")


def _revoke(path: Path, arguments: argparse.Namespace) -> None:
    key = _change_one(
        path,
        arguments.id,
        lambda key: key.model_copy(update={"is_revoked": True, "previous": None}),
    )
    print(f"{key.id} ({key.name}) is refused from now on", file=sys.stderr)


_ACTIONS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "add": _add,
    "list": _list,
    "rotate": _rotate,
    "revoke": _revoke,
}


def _change_one(path: Path, key_id: str, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
    changed: list[ApiKey] = []

    def change_file(keys: KeysFile) -> KeysFile:
        key = keys.find(key_id)
        if key is None:
            raise StartError(f"{path}: no key has the id {key_id!r}; `onestep keys list` has them")
        if key.is_revoked:
            raise StartError(f"{key_id} was revoked, which is for good; add another key")
        changed.append(change(key))
        return keys.with_key(changed[0])

    change_keys(path, change_file)
    return changed[0]


def _hand_over(key: ApiKey, secret: str, note: str) -> None:
    print(f"key {key.id} ({key.name}); {note}", file=sys.stderr)
    print(join_key(key.id, secret))


def _state(key: ApiKey) -> str:
    if key.is_revoked:
        return "revoked"
    if key.expires is not None and key.expires <= _now():
        return "expired"
    if key.previous is not None and key.previous.until > _now():
        return f"rotating until {key.previous.until.astimezone(UTC):%Y-%m-%d %H:%M}"
    return "good" if key.expires is None else f"good until {key.expires.astimezone(UTC):%Y-%m-%d}"


def _limit(count: int | None) -> str:
    return {None: "default", 0: "no limit"}.get(count, str(count))


def _names(listed: str | None) -> list[str] | None:
    if listed is None:
        return None
    return [name.strip() for name in listed.split(",") if name.strip()]


def _span(option: str, **span: float) -> timedelta:
    try:
        wanted = timedelta(**span)
        _now() + wanted
    except (OverflowError, ValueError):
        raise StartError(f"{option}: not a number of this kind") from None
    if wanted < timedelta(0):
        raise StartError(f"{option} must not be negative")
    return wanted


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
