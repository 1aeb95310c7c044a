"""Real models for the tests that need a GPU: one tiny model, exported once per session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights in the layout that export reads."""
    from engines_fixtures import write_tiny_torch_folder

    folder = tmp_path_factory.mktemp("model") / "torch"
    write_tiny_torch_folder(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(torch_folder: Path) -> Path:
    """The bundle of the tiny model."""
    from engines.export import export_bundle

    folder = torch_folder.parent / "bundle"
    export_bundle(torch_folder, folder)
    return folder
