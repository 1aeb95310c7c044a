"""The folder of one training: its files, and which run may continue in it.

Owns config.json, metrics.jsonl, alarms.jsonl, samples/, model/ and best/; snapshots are written
by distill.training.checkpoint. Every file is replaced whole, so that a kill at any moment leaves
the one before or the new one. Knows nothing of what is trained.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from distill.config import ConfigError, RunConfig
from distill.training.checkpoint import CheckpointError, is_no_room, snapshot_paths, sync_folder

logger = logging.getLogger(__name__)

Resume = Literal["last", "best"]

CONFIG, METRICS, ALARMS = "config.json", "metrics.jsonl", "alarms.jsonl"


def refuse_two_runs(run: Path, stage: str, config: RunConfig, resume: Resume | None) -> None:
    """Make sure that `run`/`stage` is free, or the same training's.

    Going back to the best snapshot may change the stage's own section: it begins a branch.

    Raises:
        ConfigError: a snapshot is there and `resume` is not asked for, or the saved config differs
            in a field that decides the result.
    """
    folder = run / stage
    if snapshot_paths(folder) and not resume:
        raise ConfigError(f"{folder} holds a training: add --resume, or give another --out")
    saved = folder / CONFIG
    if resume is not None and saved.exists():
        _refuse_another_run(saved, stage, config, resume)


def prepare_folder(run: Path, stage: str, config: RunConfig, resume: Resume | None) -> Path:
    """Make `run`/`stage`, refusing to mix two runs as `refuse_two_runs` does."""
    refuse_two_runs(run, stage, config, resume)
    folder = run / stage
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    return folder


def _refuse_another_run(saved: Path, stage: str, config: RunConfig, resume: Resume) -> None:
    try:
        before = RunConfig.from_json(saved.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(
            f"{saved} does not fit this version ({error}): "
            "resume with the version that wrote it, or give another --out"
        ) from error
    except ValueError as error:  # of JSON
        raise ConfigError(f"{saved} is damaged ({error}): give another --out") from error
    then, now = before.that_shapes(stage), config.that_shapes(stage)
    changed = [name for name in sorted(then | now) if then.get(name) != now.get(name)]
    if resume == "best":
        free = ("seed", "bf16")
        changed = [n for n in changed if n not in free and not n.startswith(f"{stage}.")]
    if changed:
        words = ", ".join(f"{name} (was {then.get(name)!r})" for name in changed)
        raise ConfigError(f"{saved} differs in {words}: resume with the same preset and --set")
    num_before = getattr(before, stage).optimizer.iterations
    num_now = getattr(config, stage).optimizer.iterations
    if num_now < num_before:
        raise ConfigError(
            f"{stage}.optimizer.iterations may be raised on resuming, not lowered: "
            f"{saved} has {num_before}, got {num_now}"
        )


class RunFolder:
    """Reads and writes the files of one training."""

    def __init__(self, path: Path) -> None:
        """Take a prepared folder."""
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out; the lock goes with the process, however it ends.

        Raises:
            ConfigError: another training is running here.
        """
        with (self.path / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another training is running in {self.path}: wait for it, or give another "
                    "--out"
                ) from error
            yield

    def save_config(self, config: RunConfig) -> None:
        """Write config.json, once it is known that the snapshot fits it."""
        _replace_text(self.path / CONFIG, config.to_json())

    def mend(self) -> None:
        """Finish what a kill left half done."""
        for name in ("model", "best"):
            _finish_swap(self.path / name)

    def cut(self, iteration: int) -> None:
        """Drop the lines that were written after `iteration`, so that each comes once."""
        for path in (self.path / METRICS, self.path / ALARMS):
            if path.exists():
                # A line that a crash cut short was the last, and so is newer than the snapshot.
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                whole = [line for line in lines if line.endswith("\n")]
                kept = [line for line in whole if json.loads(line)["iteration"] <= iteration]
                _replace_text(path, "".join(kept))

    def append(self, name: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl or alarms.jsonl."""
        line = {"iteration": iteration, "time_s": round(time.time(), 3), **values}
        with _named_when_full(self.path), (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def save_sheet(self, iteration: int, sheet: Image.Image) -> None:
        """Put a sheet of pictures into samples/."""
        with _named_when_full(self.path):
            sheet.save(self.path / "samples" / f"{iteration:07d}.png")

    def write_model(self, write: Callable[[Path], None]) -> None:
        """Replace model/ by what `write` puts into the folder that it is given."""
        with _named_when_full(self.path), _swapped(self.path / "model") as folder:
            write(folder)

    def keep_best(
        self,
        snapshot: Path,
        facts: Mapping[str, Any],
        write: Callable[[Path], None] | None = None,
    ) -> None:
        """Replace best/ by a snapshot, what is known of it, and its model where `write` is given.

        The snapshot costs no space while it is also one of the last ones.
        """
        with _named_when_full(self.path), _swapped(self.path / "best") as folder:
            try:
                os.link(snapshot, folder / "snapshot.pt")
            except OSError:  # a file system without links
                shutil.copyfile(snapshot, folder / "snapshot.pt")
            (folder / "best.json").write_text(
                json.dumps(dict(facts), indent=2, allow_nan=False) + "\n"
            )
            if write is not None:
                write(folder / "model")

    def best(self) -> dict[str, Any] | None:
        """What is known of the best snapshot: `iteration`, and `score` where there is one."""
        path = self.path / "best" / "best.json"
        if not path.exists():
            return None
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts


@contextmanager
def _swapped(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` once it is complete."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    before = target.with_name(target.name + ".before")
    _finish_swap(target)
    if target.exists():
        target.rename(before)
    partial.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def _finish_swap(target: Path) -> None:
    """Go back to the former folder where a kill came between its leaving and the new one."""
    before = target.with_name(target.name + ".before")
    if before.exists() and not target.exists():
        before.rename(target)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _named_when_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # writers wrap a full disk in errors of their own
        if not is_no_room(error):
            raise
        free_bytes = shutil.disk_usage(folder).free
        raise CheckpointError(
            f"no room in {folder}: {free_bytes / 2**20:.1f} MiB are free on the disk; its "
            "snapshots are whole: make room, then continue with --resume"
        ) from error


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with _named_when_full(path.parent):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
