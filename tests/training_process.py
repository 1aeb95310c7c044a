"""Trainings as processes of their own that a test can kill.

Owns starting them. A server process imports the packages once and forks, so that a training is
there in a fraction of a second and dies of SIGKILL like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, BinaryIO

import torch

LIMIT_S = 120
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training_process", "distill.stages", "torch.utils.tensorboard"])


def arguments(command: str, run: Path, *settings: str) -> list[str]:
    """Words of the command line for a tiny run."""
    pairs = [part for setting in ("num_threads=1", *settings) for part in ("--set", setting)]
    return [command, "--preset", "shapes_tiny", "--out", str(run), *pairs]


def start(words: list[str], output: Path, **faults: Any) -> ForkServerProcess:
    """Start `onestep-distill` with what it prints going to a file.

    Args:
        words: of the command line.
        output: where standard output and standard error go.
        faults: see `_run`.
    """
    process = _CONTEXT.Process(target=_run, args=(words, str(output)), kwargs=faults)
    process.start()
    return process


def finish(words: list[str], output: Path, **faults: Any) -> tuple[int, str]:
    """Run `onestep-distill` to its end; return the exit code and what it printed."""
    process = start(words, output, **faults)
    process.join(LIMIT_S)
    assert process.exitcode is not None, output.read_text()
    return process.exitcode, output.read_text()


def _run(
    words: list[str], output: str, slow_bytes: int = 0, max_file_bytes: int | None = None
) -> None:
    """In the new process: run the command.

    Args:
        words: of the command line.
        output: path of the file that takes what is printed.
        slow_bytes: a snapshot pauses after this many bytes, so that most of the time is spent
            writing it; 0 does not.
        max_file_bytes: files cannot grow beyond, as on a full disk.
    """
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    from distill.__main__ import main

    if slow_bytes:
        _slow_down(slow_bytes)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    sys.exit(main(words))


class _SlowStream:
    """Passes bytes on in pieces, each on the disk before the next, with a pause after each."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self._stream, self._num_bytes = stream, num_bytes

    def write(self, content: Any) -> int:
        view = memoryview(content)
        for start in range(0, len(view), self._num_bytes):
            self._stream.write(view[start : start + self._num_bytes])
            self._stream.flush()
            time.sleep(0.002)
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _slow_down(num_bytes: int) -> None:
    save = torch.save
    torch.save = lambda state, stream: save(state, _SlowStream(stream, num_bytes))
