"""SIGKILL at any moment of a build leaves no listed plan that is not whole, and costs one plan.

ONESTEP_KILLS sets how many kills the storm has; a night's run takes a thousand.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro_bundle import write_micro_bundle

from engines.plans import ENGINES_FILE, EngineList, load_plan
from engines.spec import sha256_of

pytest.importorskip("tensorrt_rtx")

NUM_KILLS = int(os.environ.get("ONESTEP_KILLS", "10"))
LIMIT_S = 120
# A slow disk: most of a build's time then lies between a file's content and its name.
SLOW_DISK = """
import os, sys, time
real = os.fsync
def fsync(descriptor):
    time.sleep(0.1)
    real(descriptor)
os.fsync = fsync
from engines.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def _start(bundle: Path, plans: Path) -> subprocess.Popen[str]:
    words = ["build", str(bundle), "--out", str(plans), "--compute-capability", "SM89"]
    for size in range(1, 6):
        words += ["--batch", str(size)]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, printed
    return printed


def _assert_whole(plans: Path) -> int:
    """Every listed plan is what was written; return how many there are."""
    listed = EngineList.load(plans).engines
    for record in listed:
        assert len(load_plan(plans, record.key)) == record.size_bytes
        assert sha256_of(plans / record.file) == record.sha256
    return len(listed)


def test_a_storm_of_kills_leaves_only_whole_plans(tmp_path: Path) -> None:
    rng = random.Random(0)
    # Every second kill falls on a build of other weights, which replaces what is listed.
    bundles = [write_micro_bundle(tmp_path / f"bundle{seed}", seed) for seed in (0, 1)]
    plans = tmp_path / "plans"
    num_partials = num_removed = num_replacing = 0
    for i in range(NUM_KILLS):
        process = _start(bundles[i % 2], plans)
        deadline_s = time.monotonic() + LIMIT_S
        assert process.stdout is not None
        for line in process.stdout:  # the first plan is under way
            num_removed += "half-written" in line
            assert "damaged" not in line
            if "compiling" in line:
                break
            assert time.monotonic() < deadline_s
        time.sleep(rng.uniform(0.0, 4.0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        num_partials += len(list(plans.glob("*.partial")))
        if (plans / ENGINES_FILE).exists():
            _assert_whole(plans)
            keys = [record.key for record in EngineList.load(plans).engines]
            models = {(key.stage, key.weights_sha256) for key in keys}
            num_replacing += len(models) > len({key.stage for key in keys})
    assert num_partials, "no kill came while a file was written"
    assert num_replacing, "no kill came while plans replaced others"

    printed = _finish(_start(bundles[0], plans))
    num_removed += "half-written" in printed
    assert num_removed
    assert "damaged" not in printed
    assert _assert_whole(plans) == 15
    files = {record.file for record in EngineList.load(plans).engines}
    assert not list(plans.glob("*.partial"))
    assert {path.name for path in plans.glob("*.plan")} == files
    printed = _finish(_start(bundles[0], plans))
    assert printed.count("is up to date") == 15
