"""What the integration tests share: one tiny bundle, exported once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.export import export_bundle
from engines_fixtures import write_tiny_torch_folder


@pytest.fixture(scope="session")
def tiny_torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch folder with random weights, in the layout that export reads."""
    folder = tmp_path_factory.mktemp("torch") / "tiny"
    write_tiny_torch_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_torch_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a bundle."""
    bundle = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(tiny_torch_folder, bundle)
    return bundle
