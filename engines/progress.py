"""What a build shows while it works, and how Ctrl-C ends it.

Owns the bar on a terminal, the lines elsewhere, and the arithmetic that turns a compiler's nested
phases into one fraction. Knows no compiler.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TextIO, TypeVar

_LINE_INTERVAL_S = 5.0
_JOIN_INTERVAL_S = 0.1
_Result = TypeVar("_Result")


class Progress(Protocol):
    """Where a build reports to; `show` may be called from another thread."""

    def line(self, text: str) -> None:
        """Say something once."""

    def show(self, name: str, phase: str, fraction: float) -> None:
        """Say how far `name` is; 1.0 is done."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """Progress as lines: for logs, and where no terminal is."""

    def __init__(self, write: Callable[[str], None], interval_s: float = _LINE_INTERVAL_S) -> None:
        """Send lines to `write`, those about the same plan no more often than the interval."""
        self._write = write
        self._interval_s = interval_s
        self._name = ""
        self._last_s = 0.0

    def line(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def show(self, name: str, phase: str, fraction: float) -> None:
        """Write a line if the last one is old enough; a new name starts a new interval."""
        now_s = time.monotonic()
        if name != self._name:
            self._name, self._last_s = name, now_s
        elif now_s - self._last_s >= self._interval_s and fraction < 1:
            self._last_s = now_s
            self._write(f"{name}: {fraction:.0%}, {phase}")

    def close(self) -> None:
        """Nothing to do."""


class Bars:
    """Progress as one bar per plan, with the phase it is in and the time it took."""

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        """Draw on `stream`.

        Raises:
            ImportError: rich is not installed.
        """
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[phase]}", markup=False),
        )
        console = Console(file=stream, width=width)
        self._progress: Any = progress.Progress(*columns, console=console)
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def line(self, text: str) -> None:
        """Print a line over the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, name: str, phase: str, fraction: float) -> None:
        """Move the bar of `name`."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0, phase=phase)
        self._progress.update(self._tasks[name], completed=fraction, phase=phase)

    def close(self) -> None:
        """Draw the last state and let the terminal go."""
        self._progress.stop()


def progress_on(stream: TextIO) -> Progress:
    """Bars where `stream` is a terminal and rich is installed, lines elsewhere."""
    if stream.isatty():
        try:
            return Bars(stream)
        except ImportError:
            pass
    return Lines(lambda text: print(text, file=stream, flush=True))


@dataclass
class _Phase:
    name: str
    num_steps: int
    num_done: int = 0


class Phases:
    """Nested phases as one fraction that never falls. Not safe for threads of its own."""

    def __init__(self) -> None:
        """Start with no phase."""
        self._open: list[_Phase] = []
        self._fraction = 0.0

    def start(self, name: str, num_steps: int) -> None:
        """Open a phase inside the one that was opened last."""
        self._open.append(_Phase(name, max(num_steps, 1)))

    def step(self, name: str, step: int) -> None:
        """Note that a phase has ended its step `step`, counted from 0."""
        for phase in self._open:
            if phase.name == name:
                phase.num_done = max(phase.num_done, step + 1)

    def finish(self, name: str) -> None:
        """Close a phase, and those inside it that were left open."""
        names = [phase.name for phase in self._open]
        if name in names:
            del self._open[len(names) - 1 - names[::-1].index(name) :]
        if not self._open:
            self._fraction = 1.0

    @property
    def name(self) -> str:
        """The innermost phase."""
        return self._open[-1].name if self._open else ""

    @property
    def fraction(self) -> float:
        """How much of the outermost phase is done, each step counted alike."""
        share, done = 1.0, 0.0
        for phase in self._open:
            done += share * min(phase.num_done / phase.num_steps, 1.0)
            share /= phase.num_steps
        if self._open:
            self._fraction = max(self._fraction, min(done, 1.0))
        return self._fraction


def run_cancellable(
    work: Callable[[Callable[[], bool]], _Result], on_cancel: Callable[[], None]
) -> _Result:
    """Run `work` in a thread, so that Ctrl-C is noticed while it is inside a library.

    The first Ctrl-C makes the function that `work` is given return True and waits until `work` has
    ended; the second kills the process, as it would had nobody caught it.

    Raises:
        KeyboardInterrupt: it was cancelled; whatever `work` returned is dropped.
    """
    cancelled = threading.Event()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(cancelled.is_set))
        except BaseException as error:  # raised again below, in the caller's thread
            errors.append(error)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if cancelled.is_set():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        cancelled.set()
        on_cancel()

    thread = threading.Thread(target=run, name="compile")
    with _interrupts_go_to(on_interrupt):
        thread.start()
        # In short waits: a handler of Python's runs only between two of its instructions.
        while thread.is_alive():
            thread.join(_JOIN_INTERVAL_S)
    if cancelled.is_set():
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _interrupts_go_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take over Ctrl-C, where it would raise KeyboardInterrupt: at a moment of its own choice."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_ours:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
