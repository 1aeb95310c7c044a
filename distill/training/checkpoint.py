"""Snapshots of a training and the weights that leave it.

Owns the files of a run folder that hold tensors. A snapshot is written whole or not at all, the
ones before it stay until the new one is complete, and a damaged one is passed over for the one
before. Knows nothing of losses or data.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.training.processes import dealt_like, local

SNAPSHOTS = "snapshots"
# Runs of version 0.1 kept one file beside config.json.
_OLD_SNAPSHOT = "snapshot.pt"
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# An archive's own records, beyond the tensors' bytes: a part per archive, and one per tensor.
_ARCHIVE_BYTES, _RECORD_BYTES = 2**16, 512

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A snapshot or model folder is missing or damaged, or has no room; names it and the remedy."""


def snapshot_paths(folder: Path) -> list[Path]:
    """Snapshots of a training's folder, newest first; whether they are whole is not looked at."""
    numbered = sorted((folder / SNAPSHOTS).glob("*.pt"), reverse=True)
    return [*numbered, *folder.glob(_OLD_SNAPSHOT)]


def snapshot_path(folder: Path, iteration: int) -> Path:
    """Where the snapshot of an iteration lies."""
    return folder / SNAPSHOTS / f"{iteration:08d}.pt"


def save_snapshot(folder: Path, state: Mapping[str, Any], num_kept: int = 2) -> Path:
    """Write `state` (tensors, numbers, strings, lists, dicts) beside the snapshots before it.

    Args:
        folder: of the training; the file lies in its snapshots/ and is named by the iteration.
        state: has "iteration".
        num_kept: how many snapshots are left, this one included.

    Raises:
        CheckpointError: the disk is too full; the snapshots before are whole.
    """
    home = folder / SNAPSHOTS
    home.mkdir(exist_ok=True)
    for leftover in home.glob("*.partial"):  # of a process that was killed
        leftover.unlink()
    path = snapshot_path(folder, state["iteration"])
    _save_whole(path, dict(state))
    # Snapshots of a later iteration were damaged or given up when the run went back.
    others = [other for other in snapshot_paths(folder) if other != path]
    kept = [other for other in others if other.name < path.name][: num_kept - 1]
    kept += [other for other in others if other.name == _OLD_SNAPSHOT][: num_kept - 1 - len(kept)]
    for other in set(others) - set(kept):
        other.unlink()
    return path


def _save_whole(path: Path, state: dict[str, Any]) -> None:
    num_bytes = _archive_bytes(state)
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < num_bytes:
        raise _no_room(path.parent, num_bytes)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if is_no_room(error):
            raise _no_room(path.parent, num_bytes) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _archive_bytes(state: Any) -> int:
    """About what torch.save will write; a storage that several tensors share counts once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    visit(state)
    return sum(storages.values()) + _RECORD_BYTES * len(storages) + _ARCHIVE_BYTES


def _no_room(folder: Path, num_bytes: int) -> CheckpointError:
    # What a failed write left behind is gone again by the time the user reads this.
    free_bytes = shutil.disk_usage(folder).free
    return CheckpointError(
        f"no room for a snapshot in {folder}: {num_bytes / 2**20:.1f} MiB are needed, "
        f"{free_bytes / 2**20:.1f} MiB are free on the disk; the snapshots there are whole: "
        "make room, then continue with --resume"
    )


def is_no_room(error: BaseException | None) -> bool:
    """Whether a full disk or a quota is behind an error; torch hides it in the context."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk, not only its files."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def load_snapshot(folder: Path) -> dict[str, Any]:
    """Read the newest whole snapshot of a training's folder, with a warning for each damaged one.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    paths = snapshot_paths(folder)
    if not paths:
        raise CheckpointError(f"no snapshot in {folder / SNAPSHOTS}: train without --resume first")
    for path in paths:
        try:
            return read_snapshot(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
    names = ", ".join(map(str, paths))
    raise CheckpointError(f"every snapshot is damaged ({names}): remove them and train again")


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read one snapshot; tensors and plain values only, never code.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums itself
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can lead the unpickler to any error
        raise CheckpointError(f"{path} is damaged") from error
    return state


def trained_state(model: nn.Module) -> dict[str, Any]:
    """A model's state without the parameters that are never trained."""
    every = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in every if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model of the same form what `trained_state` took; its frozen parameters stay.

    Args:
        model: whole, or dealt out over processes.
        state: whole tensors, or dealt out as the model's are.

    Raises:
        RuntimeError: the state is of a model of another form.
    """
    own = trained_state(model)
    wrong = state.keys() ^ own.keys()
    if wrong:
        raise RuntimeError(f"the state does not fit the model: {', '.join(sorted(wrong))}")
    wrong = {name for name in own if own[name].shape != state[name].shape}
    if wrong:
        raise RuntimeError(f"size mismatch for {', '.join(sorted(wrong))}")
    for name, tensor in own.items():
        local(tensor).copy_(local(dealt_like(state[name], tensor)))


class Ema:
    """Exponential moving average of a model's trained parameters, kept beside it.

    The decay ramps up as (1 + n) / (10 + n) so that the first iterations do not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights."""
        self.decay = decay
        self.num_updates = 0
        self.weights = {k: v.detach().clone() for k, v in trained_state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = trained_state(model)
        floats = [k for k, v in self.weights.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [local(self.weights[k]) for k in floats], [local(current[k]) for k in floats], 1 - decay
        )
        for key in self.weights.keys() - set(floats):
            self.weights[key].copy_(current[key])

    def copy_to(self, model: nn.Module) -> None:
        """Give the averaged weights to a model of the same form."""
        load_trained_state(model, self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved average."""
        self.num_updates = state["num_updates"]
        for key, value in state["weights"].items():
            own = self.weights[key]
            local(own).copy_(local(dealt_like(value, own)))


@contextmanager
def averaged(model: nn.Module, ema: Ema) -> Iterator[None]:
    """Lend the averaged weights to a model for a while."""
    own = {key: value.detach().clone() for key, value in trained_state(model).items()}
    was_training = model.training
    ema.copy_to(model)
    model.eval()
    try:
        yield
    finally:
        load_trained_state(model, own)
        model.train(was_training)
