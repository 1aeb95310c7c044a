"""What the tests of operation share."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repo_version(repo_root: Path) -> str:
    """The version that pyproject.toml declares."""
    version: str = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["version"]
    return version
