"""A full disk ends a training with words, and leaves the snapshots before whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training_process import LIMIT_S, arguments, finish

from distill.training.checkpoint import load_snapshot, snapshot_paths

SETTINGS = ("autoencoder.optimizer.iterations=6", "sample_every=1000", "snapshot_every_s=0")


def _first_two_iterations(run: Path) -> int:
    """Train for two iterations; return the size of a snapshot."""
    short = ("autoencoder.optimizer.iterations=2", *SETTINGS[1:], "track.tensorboard=false")
    code, words = finish(arguments("autoencoder", run, *short), run.parent / "first.txt")
    assert code == 0, words
    return snapshot_paths(run / "autoencoder")[0].stat().st_size


def test_a_write_that_is_cut_short_leaves_the_snapshots_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    num_bytes = _first_two_iterations(run)
    words = [*arguments("autoencoder", run, *SETTINGS, "track.tensorboard=false"), "--resume"]
    code, printed = finish(words, tmp_path / "full.txt", max_file_bytes=num_bytes // 2)
    assert code == 2, printed
    message = printed.strip().splitlines()[-1]
    home = run / "autoencoder" / "snapshots"
    assert message.startswith(f"onestep-distill: no room for a snapshot in {home}: "), printed
    needed = re.search(r"(\d+\.\d) MiB are needed", message)
    assert needed
    assert 0.9 * num_bytes < float(needed[1]) * 2**20 < 1.2 * num_bytes + 2**17
    assert "Traceback" not in printed
    assert load_snapshot(run / "autoencoder")["iteration"] == 2
    assert not list(home.glob("*.partial"))
    # With room again, it goes on.
    code, printed = finish(words, tmp_path / "again.txt")
    assert code == 0, printed
    assert load_snapshot(run / "autoencoder")["iteration"] == 6


_PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from distill.training import checkpoint
from distill.training.checkpoint import (
    CheckpointError, load_snapshot, save_snapshot, snapshot_paths,
)

folder, is_limited, is_foreseen = Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3] == "1"
for i in (1, 2):
    save_snapshot(folder, {"iteration": i, "weights": torch.full((2**18,), float(i))})
if is_limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
if not is_foreseen:
    checkpoint._archive_bytes = lambda state: 0
try:
    save_snapshot(folder, {"iteration": 3, "weights": torch.full((2**18,), 3.0)})
except CheckpointError as error:
    print(error)
assert [int(path.stem) for path in snapshot_paths(folder)] == [2, 1]
assert len(list((folder / "snapshots").iterdir())) == 2
assert load_snapshot(folder)["weights"].unique().tolist() == [2.0]
"""


def _own_disk(mount: Path, size: str) -> list[str]:
    """Words before a command that mount a small disk for it alone; none where that is forbidden."""
    script = f'mount -t tmpfs -o size={size} tmpfs "{mount}" && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    try:
        is_allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        is_allowed = False
    return words if is_allowed else []


@pytest.mark.parametrize("is_foreseen", [True, False], ids=["foreseen", "while writing"])
def test_a_small_disk_holds_the_snapshots_before(tmp_path: Path, is_foreseen: bool) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    # Two snapshots of 1 MiB fit, a third does not. Without a disk, the size of files is limited.
    disk = _own_disk(mount, "2600k")
    flags = [str(int(not disk)), str(int(is_foreseen))]
    ran = subprocess.run(
        [*disk, sys.executable, "-c", _PROGRAM, str(mount), *flags],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert ran.returncode == 0, ran.stderr
    needed = "1.1" if is_foreseen else "0.0"
    assert ran.stdout.startswith(
        f"no room for a snapshot in {mount / 'snapshots'}: {needed} MiB are needed, "
    ), ran.stdout
    assert "are whole: make room, then continue with --resume" in ran.stdout
