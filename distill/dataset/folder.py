"""A folder of captioned pictures.

Owns the two ways to caption them: NAME.txt beside NAME.png, one caption per line, or a
metadata.jsonl or metadata.csv in the form of Hugging Face's imagefolder. Reads files, decodes none.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from distill.dataset.rows import PICTURE_SUFFIXES, DamagedRow

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_BLOCK_ROWS = 1024


def find_files(folder: Path, *suffixes: str) -> list[Path]:
    """Files below a folder with one of the suffixes, hidden ones left out, in a fixed order."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found)


class FolderRows:
    """Rows of a folder: first those that metadata files name, then the other pictures."""

    num_unreadable_files = 0

    def __init__(self, folder: Path, label: str) -> None:
        """List the pictures; nothing but metadata files is opened yet."""
        self.label = label
        self._folder = folder
        self._rows: list[tuple[Path, Mapping[str, Any] | None]] = []
        for path in find_files(folder, ".jsonl", ".csv"):
            if path.name in METADATA_NAMES:
                self._rows += [(picture, raw) for picture, raw in _metadata_rows(path)]
        named = {path for path, _ in self._rows}
        pictures = find_files(folder, *PICTURE_SUFFIXES)
        self._rows += [(path, None) for path in pictures if path not in named]
        whole, rest = divmod(len(self._rows), _BLOCK_ROWS)
        self.block_sizes = (_BLOCK_ROWS,) * whole + (rest,) * bool(rest)
        # Names and sizes, not contents: reading every picture twice would double the start.
        known = sha256()
        for path, raw in self._rows:
            size = path.stat().st_size if path.is_file() else -1
            known.update(json.dumps([str(path.relative_to(folder)), size, raw]).encode())
            if raw is None and (words := path.with_suffix(".txt")).is_file():
                known.update(str(words.stat().st_mtime_ns).encode())
        self.fingerprint = known.hexdigest()

    def __len__(self) -> int:
        """Number of pictures, readable or not."""
        return len(self._rows)

    def where(self, index: int) -> str:
        """Path below the folder."""
        return str(self._rows[index][0].relative_to(self._folder))

    def read(self, index: int, *, with_image: bool = True) -> Mapping[str, Any]:
        """Read one picture and its captions.

        Raises:
            DamagedRow: the picture or its caption cannot be read.
        """
        path, metadata = self._rows[index]
        raw: dict[str, Any] = (
            {"captions": _words_beside(path)} if metadata is None else {**metadata}
        )
        if "error" in raw:
            raise DamagedRow(raw["error"])
        if with_image:
            try:
                raw["image"] = path.read_bytes()
            except OSError as error:
                raise DamagedRow(f"cannot be read: {error.strerror}") from error
        return raw


def _words_beside(picture: Path) -> list[str]:
    path = picture.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DamagedRow(f"no caption: no {path.name} beside it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRow(f"{path.name} cannot be read: {error}") from error


def _metadata_rows(path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Picture and row; a row that cannot be used carries `error` instead of captions."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        yield path, {"error": f"cannot be read: {error}"}
        return
    lines: list[Any]
    if path.suffix == ".csv":
        lines = list(csv.DictReader(text.splitlines()))
    else:
        lines = [_parsed(line) for line in text.splitlines() if line.strip()]
    for number, raw in enumerate(lines, start=1):
        name = raw.get("file_name") if isinstance(raw, dict) else None
        if not isinstance(name, str) or not name:
            yield path, {"error": f"row {number} names no file_name"}
            continue
        picture = path.parent / name
        if not picture.resolve().is_relative_to(path.parent.resolve()):
            yield path, {"error": f"row {number} points outside the folder"}
            continue
        yield picture, raw


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
