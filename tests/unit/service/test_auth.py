"""From a key to a principal, and how a changed keys file is followed."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from keys_fixtures import CREATED, make_key, write_keys
from service_fixtures import FakeClock

from service import auth
from service.api_keys import (
    KeysFile,
    digest_of,
    join_key,
    load_keys,
    new_secret,
    rotated,
    split_key,
)
from service.auth import LOOK_EVERY_S, UNKNOWN, KeyRing
from service.errors import StartError, Unauthorized
from service.jobs import Priority
from service.principal import Allowance, Principal

DEFAULTS = Allowance(100, 1000, 5000, 4)
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _ring(path: Path, clock: FakeClock | None = None, now: datetime = NOW) -> KeyRing:
    return KeyRing(path, DEFAULTS, now_s=now.timestamp, clock=clock or FakeClock())


async def _refusal(ring: KeyRing, credential: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        await ring.principal(credential)
    return caught.value.detail


async def test_a_key_leads_to_its_holder(tmp_path: Path) -> None:
    key, text = make_key(models=("tiny",), priority="background", daily_pixel_steps=0)
    ring = _ring(write_keys(tmp_path / "keys", key))
    assert await ring.principal(text) == Principal(
        key.id, ("tiny",), Priority.BACKGROUND, Allowance(100, 1000, 0, 4)
    )


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, (100, 1000)),
        ({"rate_pixel_steps_per_s": 7}, (7, 0)),
        ({"burst_pixel_steps": 9}, (100, 9)),
        ({"rate_pixel_steps_per_s": 0}, (0, 0)),
        ({"rate_pixel_steps_per_s": 7, "burst_pixel_steps": 9}, (7, 9)),
    ],
)
def test_limits_that_a_key_leaves_open_are_the_defaults(
    fields: dict[str, int], wanted: tuple[int, int]
) -> None:
    allowance = make_key(**fields)[0].principal(DEFAULTS).allowance
    assert (allowance.rate_pixel_steps_per_s, allowance.burst_pixel_steps) == wanted
    assert (allowance.daily_pixel_steps, allowance.max_open_pictures) == (5000, 4)


@pytest.mark.parametrize(
    "credential",
    [
        *("", "none", "os_", "os_abc.def", "{id}.{secret}", "os_{id}", "os_{id}."),
        *("os_{id}.{secret}x", "os_{id}.{other}", "os_000000000000.{secret}"),
        *("os_{id}.{secret}\n", " os_{id}.{secret}", "os_{id}.{secret}.{secret}"),
        *("OS_{id}.{secret}", "os_{id}.é{secret}", "x" * 100_000),
    ],
)
async def test_what_is_no_key_of_the_file_is_refused_alike(tmp_path: Path, credential: str) -> None:
    key, text = make_key()
    ring = _ring(write_keys(tmp_path / "keys", key))
    secret = text.partition(".")[2]
    sent = credential.format(id=key.id, secret=secret, other=new_secret())
    assert await _refusal(ring, sent) == UNKNOWN


async def test_an_unknown_id_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to an unknown id must not come sooner than the one to a wrong secret."""
    key, _ = make_key()
    ring = _ring(write_keys(tmp_path / "keys", key))
    num_compared = 0
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        nonlocal num_compared
        num_compared += 1
        return compare(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", counting)
    counts = []
    for credential in (join_key("0" * 16, new_secret()), join_key(key.id, new_secret())):
        num_compared = 0
        await _refusal(ring, credential)
        counts.append(num_compared)
    assert counts[0] == counts[1] > 0


async def test_holders_are_told_what_is_wrong_with_their_key(tmp_path: Path) -> None:
    revoked, revoked_text = make_key(is_revoked=True)
    expired, expired_text = make_key(expires=NOW)
    good, good_text = make_key(expires=NOW + timedelta(seconds=1))
    ring = _ring(write_keys(tmp_path / "keys", revoked, expired, good))
    assert "revoked" in await _refusal(ring, revoked_text)
    assert "expired" in await _refusal(ring, expired_text)
    assert (await ring.principal(good_text)).owner == good.id
    # Nobody else learns it.
    assert await _refusal(ring, join_key(revoked.id, new_secret())) == UNKNOWN
    assert await _refusal(ring, join_key(expired.id, new_secret())) == UNKNOWN


async def test_two_secrets_are_good_while_a_key_is_rotated(tmp_path: Path) -> None:
    key, old = make_key()
    secret = new_secret()
    path = write_keys(tmp_path / "keys", rotated(key, secret, NOW + timedelta(hours=1)))
    new = join_key(key.id, secret)
    during = _ring(path)
    assert (await during.principal(old)).owner == (await during.principal(new)).owner == key.id
    after = _ring(path, now=NOW + timedelta(hours=1))
    assert (await after.principal(new)).owner == key.id
    assert "newer" in await _refusal(after, old)


async def test_a_second_rotation_ends_the_first_secret(tmp_path: Path) -> None:
    key, first = make_key()
    once = rotated(key, new_secret(), NOW + timedelta(hours=1))
    twice = rotated(once, new_secret(), NOW + timedelta(hours=1))
    assert await _refusal(_ring(write_keys(tmp_path / "keys", twice)), first) == UNKNOWN


async def test_a_changed_file_is_read_within_a_second_and_not_before(tmp_path: Path) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    clock = FakeClock()
    ring = _ring(path, clock)
    write_keys(path, key.model_copy(update={"is_revoked": True}))
    clock.now_s = LOOK_EVERY_S - 0.01
    await ring.principal(text)
    clock.now_s = LOOK_EVERY_S
    assert "revoked" in await _refusal(ring, text)


async def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = make_key()
    clock = FakeClock()
    ring = _ring(write_keys(tmp_path / "keys", key), clock)
    monkeypatch.setattr(auth, "load_keys", lambda path: pytest.fail("read again"))
    clock.now_s = 10.0
    await ring.principal(text)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "folder"])
async def test_damage_while_serving_keeps_the_last_good_keys_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    good = path.read_text()
    clock = FakeClock()
    ring = _ring(path, clock)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_text(good[: len(good) // 2] if damage == "cut" else "")
    with caplog.at_level(logging.INFO, "onestep"):
        for _ in range(3):
            clock.now_s += LOOK_EVERY_S
            assert (await ring.principal(text)).owner == key.id
    assert [record.message for record in caplog.records] == ["keys_file_refused"]
    assert str(path) in vars(caplog.records[0])["fields"]["reason"]
    if damage == "folder":
        path.rmdir()
    path.write_text(KeysFile().model_dump_json())
    clock.now_s += LOOK_EVERY_S
    assert await _refusal(ring, text) == UNKNOWN


def _doubled(content: dict[str, Any]) -> None:
    content["keys"].append(content["keys"][0])


def _renamed(content: dict[str, Any]) -> None:
    content["keys"][0]["id"] = "short"


def _plain_secret(content: dict[str, Any]) -> None:
    content["keys"][0]["secret_sha256"] = "hunter2hunter2"


def _unknown_field(content: dict[str, Any]) -> None:
    content["keys"][0]["is_admin"] = True


def _negative(content: dict[str, Any]) -> None:
    content["keys"][0]["rate_pixel_steps_per_s"] = -1


def _next_version(content: dict[str, Any]) -> None:
    content["version"] = 2


def _no_time_zone(content: dict[str, Any]) -> None:
    content["keys"][0]["expires"] = "2027-01-01T00:00:00"


@pytest.mark.parametrize(
    "damage",
    [_doubled, _renamed, _plain_secret, _unknown_field, _negative, _next_version, _no_time_zone],
)
def test_a_file_that_makes_no_sense_is_refused_without_repeating_it(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    content = KeysFile(keys=(make_key()[0],)).model_dump(mode="json")
    damage(content)
    path = tmp_path / "keys"
    path.write_text(KeysFile.model_construct(**content).model_dump_json(warnings=False))
    with pytest.raises(StartError, match="the keys file is damaged") as caught:
        KeyRing(path, DEFAULTS)
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="onestep keys add"):
        load_keys(tmp_path / "keys")


def test_keys_have_the_promised_form() -> None:
    key, text = make_key()
    key_id, secret = split_key(text) or ("", "")
    assert text == f"os_{key_id}.{secret}"
    assert key_id == key.id and len(key_id) >= 12
    assert len(secret) == 43  # 32 bytes in base64
    assert digest_of(secret).hex() == key.secret_sha256
    assert len({new_secret() for _ in range(1000)}) == 1000
    assert key.created == CREATED
