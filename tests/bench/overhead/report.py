"""The tables that a person reads, out of the report that is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.bench.statistics import median
from tests.bench.overhead.engine import PACES
from tests.bench.overhead.rounds import NUM_AT_ONCE
from tests.bench.overhead.verdicts import APART, POISSON, SINGLE, Rounds

# Of the last minute, before anything is started.
QUIET_LOAD = 0.5


def print_report(report: dict[str, Any]) -> None:
    """Everything, in the order in which it is best read."""
    for line in lines(report):
        print(line)


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    machine = report["machine"]
    rounds = Rounds(report["rounds"])
    num_discarded = len(report["rounds"]) - len(rounds.kept)
    yield f"\n{machine['cpu']}, {machine['num_cores']} cores, client and server on the same ones"
    yield f"pictures of 512 px, {report['picture_bytes'] / 1000:.0f} kB as JPEG; largest batch 8"
    yield f"medians of {len(rounds.kept)} rounds; {num_discarded} discarded"
    if not rounds.kept:
        yield "In every round the engine alone was disturbed: the machine was not quiet."
        return
    if (load := report["load_average"]) > QUIET_LOAD:
        yield f"The load was {load} before the start: quote nothing from this run."
    yield ""
    yield from _servers(rounds)
    if report["typing"]:
        yield ""
        yield (
            "typing: {num_clients} clients, {num_prompts} prompts, {pictures_per_s} pictures/s; "
            "p50 {p50_ms} ms, p99 {p99_ms} ms, the worst client's {worst_client_p99_ms} ms; "
            "{num_unanswered} unanswered, {num_stale} stale, {num_wrong} wrong"
        ).format(**report["typing"])
    yield ""
    for verdict in report["verdicts"]:
        yield _verdict(verdict)


def _servers(rounds: Rounds) -> Iterator[str]:
    shares = "".join(f"{f'share of {pace}':>24}" for pace in PACES)
    singles = f"{'one client ms':>16}{'cores apart ms':>16}"
    yield f"{'':24}{singles}{shares}{'80% of 306/s, ms':>20}"
    intervals = f"{f'{NUM_AT_ONCE} at once, 95 %':>24}" * len(PACES)
    yield f"{'':24}{'p50 / p99':>16}{'p50 / p99':>16}{intervals}{'p50 / p99':>20}{'lost':>6}"
    for server in sorted(rounds.kept[0]["servers"], key=lambda name: ("onestep" not in name, name)):
        row = f"{server:24}"
        row += f"{_pair(rounds, server, SINGLE):>16}{_pair(rounds, server, APART):>16}"
        for pace in PACES:
            share = rounds.share(server, pace)
            row += f"{_with_interval(share.value, share.low, share.high):>24}"
        row += f"{_pair(rounds, server, POISSON):>20}"
        lost = sum(
            cell["num_lost"] for one in rounds.kept for cell in one["servers"][server].values()
        )
        yield f"{row}{lost:>6}"


def _pair(rounds: Rounds, server: str, cell: str) -> str:
    p50, p99 = (median(rounds.of(server, cell, figure)) for figure in ("p50_ms", "p99_ms"))
    return f"{p50:.2f} / {p99:.2f}" if p99 < 10 else f"{p50:.0f} / {p99:.0f}"


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value:.3f}{interval}"


def _verdict(verdict: dict[str, Any]) -> str:
    figure = _with_interval(verdict["value"], verdict["low"], verdict["high"])
    side = "at least" if verdict["is_at_least"] else "at most"
    goal = f"goal {side} {verdict['goal']:g}"
    return (
        f"{verdict['what']:48}{figure:>26}   {goal:20}{'met' if verdict['is_met'] else 'NOT MET'}"
    )
