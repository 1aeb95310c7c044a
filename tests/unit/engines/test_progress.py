"""What a build shows, and that Ctrl-C reaches work that is inside a library."""

from __future__ import annotations

import builtins
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from engines.progress import Bars, Lines, Phases, progress_on, run_cancellable


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nested_phases_are_one_fraction() -> None:
    phases = Phases()
    assert (phases.name, phases.fraction) == ("", 0.0)
    phases.start("all", 4)
    phases.step("all", 0)
    assert phases.fraction == 0.25
    phases.start("inner", 2)
    assert (phases.name, phases.fraction) == ("inner", 0.25)
    phases.step("inner", 0)
    assert phases.fraction == 0.25 + 0.25 / 2
    phases.start("innermost", 5)
    phases.step("innermost", 4)
    assert phases.fraction == 0.5
    phases.finish("inner")
    assert phases.name == "all"
    phases.step("all", 1)
    assert phases.fraction == 0.5
    phases.finish("all")
    assert (phases.name, phases.fraction) == ("", 1.0)


def test_a_fraction_never_falls_and_never_exceeds_one() -> None:
    phases = Phases()
    phases.start("all", 0)
    phases.start("inner", 1)
    phases.step("inner", 7)
    assert phases.fraction == 1.0
    phases.finish("inner")
    phases.start("inner", 10)
    assert phases.fraction == 1.0
    phases.finish("unknown")
    phases.step("unknown", 1)
    assert phases.name == "inner"


def test_lines_are_written_no_more_often_than_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    written: list[str] = []
    lines = Lines(written.append, interval_s=5.0)
    lines.show("a", "parsing", 0.0)
    now_s = 104.0
    lines.show("a", "parsing", 0.1)
    assert written == []
    now_s = 106.0
    lines.show("a", "timing", 0.5)
    lines.show("a", "timing", 0.6)
    lines.show("b", "timing", 0.6)
    now_s = 120.0
    lines.show("b", "", 1.0)
    lines.line("done")
    lines.close()
    assert written == ["a: 50%, timing", "done"]


def test_bars_show_each_plan_its_phase_and_lines_over_them() -> None:
    stream = _Terminal()
    bars = Bars(stream, width=100)
    bars.show("text batch 1", "[timing]", 0.25)
    bars.line("a [line] over the bars")
    bars.show("text batch 1", "", 1.0)
    bars.close()
    drawn = stream.getvalue()
    for part in ("text batch 1", "100%", "a [line] over the bars"):
        assert part in drawn


def test_a_terminal_gets_bars_and_everything_else_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = progress_on(_Terminal())
    assert isinstance(bars, Bars)
    bars.close()
    stream = io.StringIO()
    lines = progress_on(stream)
    lines.line("one")
    assert stream.getvalue() == "one\n"
    real = builtins.__import__

    def without_rich(name: str, *arguments: object, **keywords: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_rich)
    assert isinstance(progress_on(_Terminal()), Lines)


def test_work_runs_beside_the_caller_and_its_result_or_error_comes_back() -> None:
    def name(cancelled: Callable[[], bool]) -> str:
        assert not cancelled()
        return threading.current_thread().name

    assert run_cancellable(name, lambda: None) == "compile"

    def fail(cancelled: Callable[[], bool]) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_cancellable(fail, lambda: None)


def test_ctrl_c_asks_the_work_to_end_and_waits_until_it_has() -> None:
    told: list[str] = []
    ended = threading.Event()

    def work(cancelled: Callable[[], bool]) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        deadline_s = time.monotonic() + 30
        while not cancelled() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.set()
        return "a plan that nobody wants any more"

    with pytest.raises(KeyboardInterrupt):
        run_cancellable(work, lambda: told.append("stopping"))
    assert ended.is_set()
    assert told == ["stopping"]


def test_a_second_ctrl_c_kills_what_does_not_end() -> None:
    program = (
        "import time\n"
        "from engines.progress import run_cancellable\n"
        "def work(cancelled):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        "run_cancellable(work, lambda: print('stopping', flush=True))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for expected in ("working", "stopping"):
            assert process.stdout.readline().strip() == expected
            process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert process.returncode == -signal.SIGINT
