"""Client and server on cores of their own, for the time of one load.

On two cores the client is moved between the server's threads, and they around it, which is no
server's doing: over a network it would be elsewhere. Owns which cores those are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def apart(server_group: int) -> Iterator[bool]:
    """Give this process the first core and the server's processes the others.

    Gives False, and changes nothing, where one core is all there is or the system binds nobody.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < 2:
        yield False
        return
    first = {min(cores)}
    try:
        _bind(0, first)
        _bind_group(server_group, cores - first)
        yield True
    finally:
        _bind(0, cores)
        _bind_group(server_group, cores)


def _bind_group(group: int, cores: Collection[int]) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                for thread in (process / "task").iterdir():
                    _bind(int(thread.name), cores)
        except OSError:  # it ended meanwhile
            continue


def _bind(thread: int, cores: Collection[int]) -> None:
    os.sched_setaffinity(thread, cores)
