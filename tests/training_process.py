"""Trainings as processes of their own that a test can kill.

Owns starting them, and comparing two of them to the bit. A server process imports the packages
once and forks, so that a training is there in a fraction of a second and dies of SIGKILL like any
other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, BinaryIO

import torch

from distill.training.checkpoint import load_snapshot

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


def start_together(words: list[str], output: Path, num: int) -> list[ForkServerProcess]:
    """Start `num` processes of one training, as torchrun does; each prints to a file of its own."""
    return [
        start(words, output.with_suffix(f".{rank}.txt"), environment=environment)
        for rank, environment in enumerate(_environments(num))
    ]


def _environments(num: int) -> list[dict[str, object]]:
    """What torchrun sets for each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1"}
    group |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in range(num)]


def asked_together(question: Callable[[], Any], num: int) -> list[Any]:
    """What a function of a module answers in each of `num` processes of one group."""
    answers = _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(target=_answer, args=(question, rank, environment, answers))
        for rank, environment in enumerate(_environments(num))
    ]
    for process in processes:
        process.start()
    said = dict(answers.get(timeout=LIMIT_S) for _ in range(num))
    for process in processes:
        process.join(LIMIT_S)
    return [said[rank] for rank in range(num)]


def _answer(
    question: Callable[[], Any], rank: int, environment: Mapping[str, object], answers: Any
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    answers.put((rank, question()))


def finish_together(words: list[str], output: Path, num: int) -> tuple[list[int | None], list[str]]:
    """Run `num` processes of one training to their end; return exit codes and what they printed."""
    processes = start_together(words, output, num)
    join_all(processes)
    printed = [output.with_suffix(f".{rank}.txt").read_text() for rank in range(num)]
    return [process.exitcode for process in processes], printed


def join_all(processes: Sequence[ForkServerProcess]) -> None:
    """Wait for all; once one has failed the others may wait for it for ever, and are killed."""
    deadline_s = time.monotonic() + LIMIT_S
    while any(process.is_alive() for process in processes):
        has_failed = any(process.exitcode for process in processes)
        if time.monotonic() > deadline_s or has_failed:
            for process in processes:
                process.join(3)  # to say why
                process.kill()
        time.sleep(0.02)
    for process in processes:
        process.join()


def with_teacher(run: Path) -> Path:
    """Train an autoencoder and a teacher in a new run."""
    for command in ("autoencoder", "teacher"):
        code, words = finish(arguments(command, run), run.parent / f"{command}.txt")
        assert code == 0, words
    return run


def linked(finished: Path, run: Path, but: str = "student") -> Path:
    """A new run that has the finished stages of another, but one."""
    run.mkdir()
    for stage in ("autoencoder", "teacher"):
        if stage != but:
            (run / stage).symlink_to(finished / stage)
    return run


def _run(
    words: list[str],
    output: str,
    slow_bytes: int = 0,
    max_file_bytes: int | None = None,
    environment: Mapping[str, object] | None = None,
) -> None:
    """In the new process: run the command.

    Args:
        words: of the command line.
        output: path of the file that takes what is printed.
        environment: what a launcher sets.
        slow_bytes: a snapshot pauses after this many bytes, so that most of the time is spent
            writing it; 0 does not.
        max_file_bytes: files cannot grow beyond, as on a full disk.
    """
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update({name: str(value) for name, value in (environment or {}).items()})
    from distill.__main__ import main

    if slow_bytes:
        _slow_down(slow_bytes)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    sys.exit(main(words))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the time of day."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time_s"} for line in lines]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Compare two states down to the last bit of the last tensor."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(straight: Path, parts: Path) -> None:
    """Compare two trainings: lines, snapshots to the last bit, and finished models."""
    assert metrics_of(straight) == metrics_of(parts)
    assert_same(load_snapshot(straight), load_snapshot(parts))
    for path in (straight / "model").rglob("*"):
        if path.is_file():
            other = parts / "model" / path.relative_to(straight / "model")
            assert other.read_bytes() == path.read_bytes(), path.name


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
