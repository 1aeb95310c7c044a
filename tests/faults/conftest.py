"""A finished tiny run, shared by the tests of trainings that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_process import with_teacher


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder and a teacher; a test only reads it."""
    return with_teacher(tmp_path_factory.mktemp("finished") / "run")
