"""How the keys file is changed: by one command at a time, whole or not at all, in mode 0600.

Owns the lock and the atomic write. What a change is, and what the file means, is known elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from service.api_keys import KeysFile, load_keys
from service.errors import StartError

_MODE = 0o600


def change_keys(path: Path, change: Callable[[KeysFile], KeysFile]) -> None:
    """Replace the file's content by what `change` makes of it; a file that is missing is empty.

    Raises:
        StartError: the file is damaged, or cannot be written.
    """
    # A link stays one: what it leads to is replaced.
    path = path.resolve()
    try:
        with _locked(path):
            before = load_keys(path) if path.exists() else KeysFile()
            after = change(before)
            _write_whole(path, after.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")
    except OSError as error:
        raise StartError(
            f"{path}: the keys file cannot be written ({error.strerror}); "
            "name another with --file, or run the command as the file's owner"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only command that changes the file. The lock has a file of its own, which stays."""
    # Serving runs where this module does not exist.
    import fcntl

    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, _MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_whole(path: Path, content: bytes) -> None:
    """After a crash or a power cut the file has the old content or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE)
    try:
        with open(descriptor, "wb") as stream:
            if path.exists():
                # Root may change a file that the service reads under a name of its own.
                owner = path.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)
