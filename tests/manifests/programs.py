"""The programs that tests of operation run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


def program(name: str) -> str:
    """Its path: of this environment, else of the system."""
    found = shutil.which(name, path=f"{BIN}:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Its outcome, with what it printed."""
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **how)
