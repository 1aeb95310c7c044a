"""Preflight's memory figure beside a measured peak, for trainings small enough to run on a CPU.

Run: python -m tests.bench.preflight_accuracy [--out FILE.json] [CASE...]

The measured peak is the highest running total of torch's profiler, an instrument that sees every
allocation of torch's CPU allocator and knows nothing of the tracker. Arrays that numpy would own
are copied into torch, so that both count them. The growth of the process's resident memory is
given beside it; it includes libraries and what allocators keep.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.ablation.report import machine_words
from distill.config import RunConfig, override
from distill.preflight.parts import builder, words_of
from distill.preflight.rehearsal import rehearse
from distill.presets import preset
from tests.peak_memory import measured_peak

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A stage of a preset, with some fields set."""

    preset: str
    stage: str
    assignments: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return override(preset(self.preset), list(self.assignments))


_OWN = ("data.path=shapes", "data.num_shapes=200")
_FEW = ("data.path=shapes", "data.styles=[]", "data.concepts=[]", "data.num_shapes=48")
CASES = {
    **{f"shapes_tiny {s}": Case("shapes_tiny", s) for s in ("autoencoder", "teacher", "student")},
    **{f"own_cpu {s}": Case("own_cpu", s, _OWN) for s in ("autoencoder", "teacher", "student")},
    **{f"emoji_cpu {s}": Case("emoji_cpu", s, _FEW) for s in ("autoencoder", "teacher", "student")},
}


def compare(case: Case, part: str) -> dict[str, Any]:
    """One of the two figures of a case: each in a process that never saw the other's tensors."""
    config = case.config
    words = words_of(config.data)
    assert words is not None
    build = builder(case.stage, config, words, Path("no-models-by-name"))
    if part == "predicted":
        footprint = rehearse(build, as_card=False, with_sheet=False)
        kinds = {k.value: round(v / MIB, 3) for k, v in footprint.by_kind.items() if v}
        return {
            "predicted_mib": round(footprint.iteration_bytes / MIB, 3),
            "by_kind_mib": kinds,
        }
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = measured_peak(build)
    after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "measured_mib": round(measured / MIB, 3),
        "resident_growth_mib": round((after_kib - before_kib) / 1024, 1),
    }


def _elsewhere(name: str, part: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.preflight_accuracy", "--one", name]
    answer = subprocess.run([*command, "--part", part], check=True, capture_output=True, text=True)
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> int:
    """Compare every case in a process of its own; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", choices=CASES, help="compare one case here and print its JSON")
    parser.add_argument("--part", choices=("predicted", "measured"), default="predicted")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compare(CASES[args.one], args.part)))
        return 0
    found = {}
    for name in args.cases or CASES:
        both = {**_elsewhere(name, "predicted"), **_elsewhere(name, "measured")}
        ratio = round(both["predicted_mib"] / both["measured_mib"], 4)
        found[name] = {**asdict(CASES[name]), **both, "ratio": ratio}
        row = found[name]
        print(
            f"{name:24} predicted {row['predicted_mib']:10.2f} MiB  "
            f"measured {row['measured_mib']:10.2f} MiB  ratio {row['ratio']:.4f}"
        )
    if args.out:
        whole = {"machine": machine_words(preset("own_cpu")), "cases": found}
        args.out.write_text(json.dumps(whole, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
