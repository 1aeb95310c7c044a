"""The file of a measurement that may be cut and go on: rows by key, written one by one.

Owns the file. Knows nothing of what a row holds beside its key.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.bench.machine import load_average
from engines.roofline import Peaks

KEY = ("model", "vae", "steps", "batch_size", "variant", "dtype")


class Results:
    """The JSON file: rows by key, and the peaks of every run that added some."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        """Read what an earlier run left, if anything.

        Raises:
            ValueError: the file is of another card or of other versions, or is damaged.
        """
        self._path = path
        self._content: dict[str, Any] = {"machine": machine, "runs": [], "rows": []}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            earlier = {key: found["machine"][key] for key in ("gpu", "versions")}
            self._content |= {key: found[key] for key in ("machine", "runs", "rows")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of this program: give another --out") from error
        if earlier != {key: machine[key] for key in earlier}:
            raise ValueError(f"{path} is of another card or other versions: give another --out")

    def start_run(self, peaks: Peaks) -> None:
        """Note this run's peaks; the rows that follow refer to them."""
        self._content["runs"].append(asdict(peaks) | {"load_average": load_average()})

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row of a key, or None."""
        for row in self._content["rows"]:
            if all(row[field] == key[field] for field in KEY):
                return dict(row)
        return None

    def add(self, row: dict[str, Any]) -> None:
        """Put a row in the place of an older one and write the file, whole or not at all."""
        row["run"] = len(self._content["runs"]) - 1
        rows = self._content["rows"]
        rows[:] = [old for old in rows if any(old[field] != row[field] for field in KEY)] + [row]
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._path)
