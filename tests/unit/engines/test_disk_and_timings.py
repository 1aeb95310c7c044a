"""Files that are whole or not there, and a timing cache that is used only where it fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from plans_fixtures import KEY

from engines.disk import is_locked, locked, remove_partials, set_aside, write_whole
from engines.errors import BackendError
from engines.timings import TIMINGS_FILE, load_timings, save_timings

PLATFORM = KEY.platform


def test_a_file_reaches_the_disk_before_its_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(b"old")
    seen: list[tuple[str, bytes]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, b"new")
    assert seen == [(f"{path}.{os.getpid()}.partial", b"old"), (str(tmp_path), b"new")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.plan"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match=f"cannot write {path}: No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.plan"]


def test_a_writer_at_work_is_seen_from_outside(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "nowhere")
    with locked(tmp_path, lambda: None):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_leavings_are_removed_and_plans_are_not(tmp_path: Path) -> None:
    for name in ("a.plan.12.partial", "engines.json.12.partial", "a.plan", "b.plan.damaged"):
        (tmp_path / name).write_bytes(b"")
    assert remove_partials(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.plan", "b.plan.damaged"]


def test_a_damaged_file_is_set_aside_over_an_older_one(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "a.plan").write_bytes(content)
        assert set_aside(tmp_path / "a.plan") == tmp_path / "a.plan.damaged"
    assert (tmp_path / "a.plan.damaged").read_bytes() == b"second"


def test_who_waits_for_the_lock_is_told(tmp_path: Path) -> None:
    class Waited(Exception):
        pass

    def on_wait() -> None:
        raise Waited

    with locked(tmp_path, on_wait):
        with pytest.raises(Waited), locked(tmp_path, on_wait):
            pass
    with locked(tmp_path, on_wait):
        pass


def test_the_timing_cache_comes_back_on_the_same_platform(tmp_path: Path) -> None:
    assert load_timings(tmp_path, PLATFORM) == (b"", None)
    content = bytes(range(256))
    save_timings(tmp_path, PLATFORM, content)
    assert load_timings(tmp_path, PLATFORM) == (content, None)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}\nx", bytes(range(256)), b'{"platform": 1, "sha256": ""}\n'],
)
def test_a_file_that_is_no_timing_cache_is_ignored_with_a_line(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / TIMINGS_FILE).write_bytes(content)
    timings, ignored = load_timings(tmp_path, PLATFORM)
    assert (timings, ignored) == (b"", f"{tmp_path / TIMINGS_FILE} is ignored: it is damaged")


@pytest.mark.parametrize("at", [-1, 30, 150])
def test_a_timing_cache_with_a_bit_that_flipped_is_ignored(at: int, tmp_path: Path) -> None:
    save_timings(tmp_path, PLATFORM, b"measured")
    path = tmp_path / TIMINGS_FILE
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    timings, ignored = load_timings(tmp_path, PLATFORM)
    assert timings == b""
    assert ignored is not None and "is ignored" in ignored


@pytest.mark.parametrize(
    ("field", "value"),
    [("package", "tensorrt"), ("package_version", "1.8"), ("compute_capability", "SM120")],
)
def test_a_timing_cache_of_another_platform_is_ignored(
    field: str, value: str, tmp_path: Path
) -> None:
    save_timings(tmp_path, PLATFORM, b"measured")
    other = PLATFORM.model_copy(update={field: value})
    timings, ignored = load_timings(tmp_path, other)
    assert timings == b""
    assert ignored == (
        f"{tmp_path / TIMINGS_FILE} is ignored: it was measured with tensorrt_rtx 1.7.1 on SM89"
    )
