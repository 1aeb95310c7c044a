"""How files of a folder of plans reach the disk: whole or not at all, by one writer at a time.

Owns the lock, the atomic write and what is done with the leavings of a writer that was killed.
Knows nothing of what the files hold.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import BackendError

_LOCK = ".lock"
_PARTIAL = ".partial"
_DAMAGED = ".damaged"


@contextmanager
def locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the only writer of `folder`; `on_wait` is called where another one must end first."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a writer is at work in `folder`; False where none ever was."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path`. After a crash or a power cut it holds the old content or the new.

    Raises:
        BackendError: the disk is full or read-only.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise BackendError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` last; without it they may come after later writes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Remove what writers that died left half-written; only for who holds the lock."""
    partials = list(folder.glob(f"*{_PARTIAL}"))
    for partial in partials:
        partial.unlink(missing_ok=True)
    return len(partials)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.damaged, over an older one, and return the new path."""
    aside = path.with_name(path.name + _DAMAGED)
    path.replace(aside)
    sync_folder(path.parent)
    return aside
