"""`onestep keys`: what it prints, what it writes and what it refuses."""

from __future__ import annotations

import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.__main__ import EXIT_CANNOT_START, main
from service.api_keys import ApiKey, KeysFile, load_keys, split_key
from service.auth import KeyRing
from service.commands import key_store
from service.commands.key_store import change_keys
from service.errors import StartError, Unauthorized
from service.principal import Allowance


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONESTEP_KEYS_FILE", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def _keys(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    assert main(["keys", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    return captured.out.strip(), captured.err


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["keys", *map(str, arguments)]) == EXIT_CANNOT_START
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


async def test_a_key_lives_from_add_to_revoke(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, told = _keys(capsys, "add", "ann", "--file", path)
    parts = split_key(first)
    assert parts is not None
    key_id, secret = parts
    assert key_id in told and secret not in told
    assert (await KeyRing(path, Allowance()).principal(first)).owner == key_id

    second, told = _keys(capsys, "rotate", key_id, "--file", path, "--overlap-hours", "1")
    assert "stays good until" in told
    ring = KeyRing(path, Allowance())
    assert (await ring.principal(first)).owner == (await ring.principal(second)).owner == key_id
    assert "rotating until" in _keys(capsys, "list", "--file", path)[0]

    _keys(capsys, "revoke", key_id, "--file", path)
    ring = KeyRing(path, Allowance())
    for key in (first, second):
        with pytest.raises(Unauthorized):
            await ring.principal(key)
    assert "revoked" in _keys(capsys, "list", "--file", path)[0]
    assert "for good" in _refused(capsys, "rotate", key_id, "--file", path)


def test_no_secret_is_written_or_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = _keys(capsys, "add", "ann", "--file", path)
    secret = printed.partition(".")[2]
    listed, _ = _keys(capsys, "list", "--file", path)
    assert "ann" in listed
    assert secret not in path.read_text()
    assert secret not in listed


def test_every_option_reaches_the_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--rate", "5", "--burst", "50", "--daily", "500", "--max-open", "3")
    others = ("--models", "a, b", "--priority", "background", "--days", "2")
    _keys(capsys, "add", "ann", "--file", path, *limits, *others)
    (key,) = load_keys(path).keys
    assert (key.rate_pixel_steps_per_s, key.burst_pixel_steps) == (5, 50)
    assert (key.daily_pixel_steps, key.max_open_pictures) == (500, 3)
    assert (key.models, key.priority) == (("a", "b"), "background")
    assert key.expires is not None
    assert 47 < (key.expires - datetime.now(UTC)).total_seconds() / 3600 <= 48


def test_the_setting_names_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--file" in _refused(capsys, "list")
    monkeypatch.setenv("ONESTEP_KEYS_FILE", str(path))
    _keys(capsys, "add", "ann")
    assert [key.name for key in load_keys(path).keys] == ["ann"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("rotate", "000000000000"), "onestep keys list"),
        (("revoke", "000000000000"), "onestep keys list"),
        (("add", "ann", "--rate", "-1"), "rate_pixel_steps_per_s"),
        (("add", "ann", "--days", "1e12"), "--days"),
        (("add", "ann", "--days", "-1"), "--days"),
        (("add", "ann", "--days", "nan"), "--days"),
        (("add", ""), "name"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    _keys(capsys, "add", "bob", "--file", path)
    before = path.read_bytes()
    assert named in _refused(capsys, *arguments, "--file", path)
    assert path.read_bytes() == before


def test_the_file_is_for_its_owner_only(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        _keys(capsys, "add", "ann", "--file", path)
        path.chmod(0o644)
        _keys(capsys, "add", "bob", "--file", path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_damaged_file_is_left_as_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("{")
    assert "damaged" in _refused(capsys, "add", "ann", "--file", path)
    assert path.read_text() == "{"


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere" in _refused(capsys, "add", "ann", "--file", tmp_path / "nowhere" / "keys")


def test_a_link_stays_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = path.with_name("target.json")
    target.write_text(KeysFile().model_dump_json())
    path.symlink_to(target)
    _keys(capsys, "add", "ann", "--file", path)
    assert path.is_symlink()
    assert len(load_keys(target).keys) == 1


def test_a_write_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _keys(capsys, "add", "ann", "--file", path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_store.os, "fsync", full)
    assert "No space left" in _refused(capsys, "add", "bob", "--file", path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*partial"))


def test_commands_at_the_same_time_lose_nothing(path: Path) -> None:
    """Each reads, waits for the others to have read too if they could, and writes."""
    num_commands = 4
    meeting = threading.Barrier(num_commands)
    together = []

    def add(number: int) -> None:
        def change(keys: KeysFile) -> KeysFile:
            try:
                meeting.wait(timeout=0.1)
                together.append(number)
            except threading.BrokenBarrierError:
                pass
            digest = f"{number:064x}"
            return keys.with_key(
                ApiKey(
                    id=f"{number:012d}",
                    name="n",
                    secret_sha256=digest,
                    created=datetime.now(UTC),
                )
            )

        change_keys(path, change)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(num_commands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together
    assert len(load_keys(path).keys) == num_commands


def test_a_file_that_cannot_be_locked_is_a_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "keys.json.lock").mkdir()
    with pytest.raises(StartError, match="cannot be written"):
        change_keys(tmp_path / "keys.json", lambda keys: keys)
