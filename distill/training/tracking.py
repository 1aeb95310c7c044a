"""Showing a training beside its metrics.jsonl: TensorBoard, Weights & Biases.

Owns both adapters. Neither is a source of truth: what they show is in the run's folder too.
"""

from __future__ import annotations

import importlib
import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from distill.config import ConfigError, RunConfig

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somewhere that metrics and sheets can be looked at."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Show one line of metrics."""
        ...

    def sheet(self, iteration: int, picture: Image.Image) -> None:
        """Show a sheet of pictures."""
        ...

    def flush(self) -> None:
        """Have everything on the disk; called before a snapshot, so that none is ahead."""
        ...

    def close(self) -> None:
        """End."""
        ...


class TensorBoard:
    """Event files in the training's tensorboard/ folder."""

    def __init__(self, folder: Path, config: RunConfig, start: int) -> None:
        """Open a new event file that takes back what others say of iterations after `start`.

        Raises:
            ImportError: the package is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter  # an optional package behind it

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        text = config.to_json().replace("\n", "\n    ")  # four spaces make it code in Markdown
        self._writer.add_text("config", f"    {text}", start)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """One curve per metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def sheet(self, iteration: int, picture: Image.Image) -> None:
        """An image with a slider over iterations."""
        pixels_HWC = np.asarray(picture.convert("RGB"))
        self._writer.add_image("samples", pixels_HWC, iteration, dataformats="HWC")

    def flush(self) -> None:
        """Write out what is queued."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """One run of a Weights & Biases project; a resumed training continues it.

    Iterations that were logged before a crash are ignored there when they come again, which
    loses nothing: a resumed training repeats them exactly.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        """Start or continue the run whose id lies in the folder.

        Raises:
            ConfigError: the package is not installed.
        """
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "track.wandb_project needs Weights & Biases: pip install 'onestep[wandb]', "
                "or leave it unset"
            ) from error
        path = folder / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(8))
        self._run: Any = self._wandb.init(
            project=config.track.wandb_project,
            name=config.track.wandb_name or f"{config.name}-{folder.name}",
            id=path.read_text(),
            resume="allow",
            dir=str(folder),
            config=json.loads(config.to_json()),
        )

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """One curve per metric."""
        self._run.log(dict(values), step=iteration)

    def sheet(self, iteration: int, picture: Image.Image) -> None:
        """An image with a slider over iterations."""
        self._run.log({"samples": self._wandb.Image(picture)}, step=iteration)

    def flush(self) -> None:
        """Its own process writes as it goes."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


@contextmanager
def tracking(folder: Path, config: RunConfig, start: int) -> Iterator[Sequence[Tracker]]:
    """The trackers that the config asks for, closed at the end.

    Raises:
        ConfigError: Weights & Biases is asked for and not installed.
    """
    trackers: list[Tracker] = []
    if config.track.wandb_project:
        trackers.append(WeightsAndBiases(folder, config))
    if config.track.tensorboard:
        try:
            trackers.append(TensorBoard(folder, config, start))
        except ImportError:
            logger.warning("no curves in TensorBoard: pip install tensorboard")
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()
