"""A training shown in the real Weights & Biases, in its offline mode: no server, the same files.

Needs `pip install 'onestep[wandb]'`; not part of `make test`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from distill_fixtures import tiny_config
from PIL import Image

from distill.training.tracking import WeightsAndBiases

pytest.importorskip("wandb")
pytestmark = pytest.mark.filterwarnings("ignore")  # the package's own


def test_metrics_and_sheets_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config("track.wandb_project=emoji")
    tracker = WeightsAndBiases(tmp_path, config)
    tracker.scalars(1, {"loss": 0.5})
    tracker.sheet(1, Image.new("RGB", (8, 8), "red"))
    tracker.scalars(2, {"loss": 0.25})
    tracker.flush()
    tracker.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = path.read_bytes()  # its records hold names and values as plain text
    for words in ((tmp_path / "wandb_id").read_text(), "loss", "0.25", "samples"):
        assert words.encode() in written
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))
