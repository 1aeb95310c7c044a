"""Every test, in two parts: those that share a machine well side by side, then the others alone.

    python tests/run.py [WORDS FOR PYTEST...]

Unit and integration tests run in as many processes as there are cores, a file in one of them. What
measures time, kills processes or drives a browser runs after them, with the machine for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIDE_BY_SIDE = ("tests/unit", "tests/integration")
ALONE = ("tests/operations", "tests/faults", "tests/e2e", "tests/gpu")
# pytest's exit codes: tests failed; words such as -k leave no test of a part.
_FAILED, _NONE_CHOSEN = 1, 5


def main(words: list[str]) -> int:
    """Run both parts and return pytest's exit code, the first one that is not 0.

    What ends pytest itself, such as Ctrl-C or a word that it does not know, ends both.
    """
    many = ["--numprocesses", "logical", "--dist", "loadfile"]
    first = _run([*many, *SIDE_BY_SIDE, *words])
    if first not in (0, _FAILED, _NONE_CHOSEN):
        return first
    second = _run([*ALONE, *words])
    if _NONE_CHOSEN in (first, second):
        return min(first, second)
    return first or second


def _run(words: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    # Each process has a core: more threads than that only wait for each other.
    environment = dict(os.environ)
    if "--numprocesses" in words:
        environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # pytest, which got it too, has said all there is to say
        sys.exit(130)
