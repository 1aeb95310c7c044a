"""The service with the bundled model, as a real process, for the end-to-end tests.

TEST_BUNDLE names another bundle to try, for instance one that is still in training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import running_service


@pytest.fixture(scope="session")
def service_url(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one `onestep serve` that all end-to-end tests share."""
    bundle = Path(os.environ.get("TEST_BUNDLE") or repo_root / "models" / "emoji")
    with running_service(bundle, tmp_path_factory.mktemp("service")) as service:
        yield service.url
