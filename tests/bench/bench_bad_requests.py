"""How long refusals take, and what they leave behind in the service's memory.

Sends every row of `tests/bad_requests` to one real service, several times, prints times per kind
and writes JSON. Fails when an answer is not what its row says or a goal is missed.

    PYTHONPATH=tests python tests/bench/bench_bad_requests.py --repeats 5
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bad_requests.sending import fault_of, send
from bad_requests.table import NUM_ROWS, TABLE
from bench.bench_service import describe_machine
from service_process import resident_bytes, running_service

GOAL_P99_MS = 100.0
GOAL_GROWTH_BYTES = 64 * 2**20


def main() -> int:
    """Measure, print, write; 1 when an answer was wrong or a goal was missed."""
    arguments = _parser().parse_args()
    report = measure(arguments.model, arguments.repeats)
    report["machine"] = describe_machine(arguments.machine)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"\nwritten to {arguments.out}")
    return 0 if report["is_met"] else 1


def measure(bundle: Path, num_repeats: int) -> dict[str, Any]:
    """Send the table so many times; the first walk, which warms up, counts as well."""
    durations_ms: dict[str, list[float]] = {kind: [] for kind in TABLE}
    slowest: dict[str, float] = {}
    faults: list[str] = []
    growth_bytes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(bundle, Path(folder), max_upload_bytes=65536) as service,
    ):
        port = int(urlsplit(service.url).port or 0)
        before_bytes = resident_bytes(service.process.pid)
        for _ in range(num_repeats):
            for kind, rows in TABLE.items():
                for row in rows:
                    answer = send(row, port)
                    durations_ms[kind].append(answer.duration_ms)
                    name = f"{kind}: {row.name}"
                    slowest[name] = max(slowest.get(name, 0.0), answer.duration_ms)
                    if fault := fault_of(row, answer):
                        faults.append(f"{kind}: {fault}")
            growth_bytes.append(resident_bytes(service.process.pid) - before_bytes)
    every_ms = [ms for kind in durations_ms.values() for ms in kind]
    p99_ms = percentile(every_ms, 0.99)
    return {
        "num_rows": NUM_ROWS,
        "num_sent": len(every_ms),
        "faults": faults,
        "p50_ms": percentile(every_ms, 0.5),
        "p99_ms": p99_ms,
        "max_ms": percentile(every_ms, 1.0),
        "growth_bytes_after_each_walk": growth_bytes,
        "kinds": {
            kind: {
                "num_rows": len(TABLE[kind]),
                "p50_ms": percentile(ms, 0.5),
                "p99_ms": percentile(ms, 0.99),
            }
            for kind, ms in durations_ms.items()
        },
        "slowest_ms": dict(
            sorted(
                ((name, round(ms, 2)) for name, ms in slowest.items()), key=lambda item: -item[1]
            )[:10]
        ),
        "is_met": not faults and p99_ms < GOAL_P99_MS and max(growth_bytes) < GOAL_GROWTH_BYTES,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of them."""
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 2)


def print_report(report: dict[str, Any]) -> None:
    """The table that a person reads."""
    print("  rows   p50 ms   p99 ms   kind")
    for kind, row in report["kinds"].items():
        print(f"{row['num_rows']:>6}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}   {kind}")
    print(f"{report['num_rows']:>6}{report['p50_ms']:>9.2f}{report['p99_ms']:>9.2f}   all", end="")
    print(f", sent {report['num_sent']}, slowest {report['max_ms']:.1f} ms")
    growth = max(report["growth_bytes_after_each_walk"]) / 2**20
    print(f"\n  wrong answers  {len(report['faults'])}      goal 0")
    print(f"  p99            {report['p99_ms']:.2f} ms  goal under {GOAL_P99_MS:.0f} ms")
    print(f"  memory growth  {growth:.1f} MiB  goal under {GOAL_GROWTH_BYTES // 2**20} MiB")
    print(f"  {'met' if report['is_met'] else 'NOT MET'}")
    for fault in report["faults"][:20]:
        print(f"  {fault}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/emoji"), help="bundle folder")
    parser.add_argument("--out", type=Path, default=Path("bench-results/bad-requests.json"))
    parser.add_argument("--machine", default="unnamed machine", help="a name for the report")
    parser.add_argument("--repeats", type=int, default=5, help="walks through the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
