"""JSON files of a diffusers folder.

Owns reading them, and the one line that is said when one is missing or damaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.errors import ExportError


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ExportError: the file is missing, unreadable or no JSON object.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(
            f"{path} is missing: give a folder in the diffusers layout, or one with model.json"
        ) from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is damaged ({error}): fetch the model again") from error
    if not isinstance(read, dict):
        raise ExportError(f"{path} is damaged (no object): fetch the model again")
    return read
