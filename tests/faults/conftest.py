"""A finished tiny run, shared by the tests of trainings that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_process import arguments, finish


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a teacher; a test only reads it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    for command in ("autoencoder", "teacher"):
        code, words = finish(arguments(command, run), run.parent / f"{command}.txt")
        assert code == 0, words
    return run
