"""WebDataset tar shards, read at random through an index of their members.

Owns the index: where each sample's picture and words lie in its tar. It is built once per shard by
walking the headers, and kept in a folder so that a later start reads it back. The files must not
be compressed as a whole: nothing in a .tar.gz can be found without unpacking what is before it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.dataset.rows import PICTURE_SUFFIXES, DamagedRow

logger = logging.getLogger(__name__)

# Shape suffixes: N samples, P (offset, number of bytes) of picture, .txt and .json in this order.

_PARTS = ("image", "txt", "json")
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class TarIndex:
    """Where the parts of a tar's samples lie; a part that is not there has offset -1."""

    places_NP: NDArray[np.int64]
    num_bytes: int

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as stream:
                np.savez(stream, places_NP=self.places_NP, num_bytes=np.int64(self.num_bytes))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> TarIndex | None:
        """Read it back, or None where it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["places_NP"], int(arrays["num_bytes"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def index_tar(file: Path) -> TarIndex:
    """Walk a tar's headers; what lies before the damage counts where it is cut short.

    Raises:
        OSError, tarfile.TarError: not even its first header can be read.
    """
    samples: dict[str, list[int]] = {}
    with tarfile.open(file, "r:") as archive:
        for member in _until_damaged(archive, file):
            path = PurePosixPath(member.name)
            stem, _, suffix = path.name.partition(".")
            part = "image" if f".{suffix.lower()}" in PICTURE_SUFFIXES else suffix.lower()
            if not member.isfile() or not stem or part not in _PARTS:
                continue
            places = samples.setdefault(str(path.with_name(stem)), [-1, 0] * len(_PARTS))
            where = 2 * _PARTS.index(part)
            places[where : where + 2] = member.offset_data, member.size
    kept = [places for places in samples.values() if places[0] >= 0]
    places_NP = np.asarray(kept, dtype=np.int64).reshape(-1, 2 * len(_PARTS))
    return TarIndex(places_NP, file.stat().st_size)


def _until_damaged(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from archive
    except (OSError, tarfile.TarError) as error:
        logger.warning("skipping the rest of %s: %s", file, error)


class TarRows:
    """Rows of tars: members KEY.jpg (.png, .webp) with KEY.txt, one caption a line, or KEY.json."""

    def __init__(self, files: Sequence[Path], label: str, index_folder: Path | None) -> None:
        """Index every tar, or read its index back.

        Args:
            files: in the order of the rows.
            label: what the user called them.
            index_folder: where indexes are kept; None keeps none.
        """
        self.label = label
        self.num_unreadable_files = 0
        self._files: list[Path] = []
        indexes: list[TarIndex] = []
        known = sha256()
        for file in files:
            try:
                index = _indexed(file, index_folder)
            except (OSError, tarfile.TarError) as error:
                logger.warning("skipping %s: %s", file, error)
                self.num_unreadable_files += 1
                continue
            self._files.append(file)
            indexes.append(index)
            known.update(f"{file.name} {index.num_bytes} {len(index.places_NP)}\n".encode())
        self.fingerprint = known.hexdigest()
        self._places_NP = np.concatenate(
            [np.empty((0, 2 * len(_PARTS)), np.int64), *(index.places_NP for index in indexes)]
        )
        counts = [len(index.places_NP) for index in indexes]
        self._first = np.fromiter(itertools.accumulate(counts, initial=0), dtype=np.int64)
        self.block_sizes = tuple(
            min(_BLOCK_ROWS, count - start)
            for count in counts
            for start in range(0, count, _BLOCK_ROWS)
        )

    def __len__(self) -> int:
        """Number of samples with a picture."""
        return len(self._places_NP)

    def where(self, index: int) -> str:
        """File and sample in it."""
        file = self._file_of(index)
        return f"{self._files[file].name} sample {index - int(self._first[file])}"

    def read(self, index: int, *, with_image: bool = True) -> Mapping[str, Any]:
        """Read one sample.

        Raises:
            DamagedRow: the tar is cut short there, or its words are no text.
        """
        places = dict(zip(_PARTS, self._places_NP[index].reshape(-1, 2).tolist(), strict=True))
        file = self._files[self._file_of(index)]
        try:
            raw = self._words(file, places)
            if with_image:
                raw["image"] = _bytes_at(file, *places["image"])
        except (OSError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
            raise DamagedRow(f"cannot be read: {error}") from error
        return raw

    @staticmethod
    def _words(file: Path, places: Mapping[str, list[int]]) -> dict[str, Any]:
        raw: dict[str, Any] = {}
        if places["json"][0] >= 0:
            parsed = json.loads(_bytes_at(file, *places["json"]))
            if not isinstance(parsed, dict):
                raise ValueError("its .json holds no object")
            raw = parsed
        if places["txt"][0] >= 0:
            raw["captions"] = _bytes_at(file, *places["txt"]).decode("utf-8-sig").splitlines()
        return raw

    def _file_of(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _indexed(file: Path, index_folder: Path | None) -> TarIndex:
    """The kept index of a tar, built where it is missing or the tar has changed.

    A tar that has lost samples since, by damage, keeps its index: its lost samples are then
    replaced one by one as they are drawn, and every other sample keeps its place in the order.
    """
    if index_folder is None:
        return index_tar(file)
    name = sha256(str(file.resolve()).encode()).hexdigest()[:12]
    path = index_folder / f"{file.stem}-{name}.npz"
    before = TarIndex.load(path)
    num_bytes = file.stat().st_size if file.is_file() else -1
    if before is not None and before.num_bytes == num_bytes:
        return before
    try:
        index = index_tar(file)
    except (OSError, tarfile.TarError):
        if before is None:
            raise
        logger.warning("%s cannot be read any more: its samples will be replaced", file)
        return before
    if before is not None and len(index.places_NP) < len(before.places_NP):
        logger.warning("%s has lost samples: they will be replaced", file)
        return before
    index.save(path)
    return index


def _bytes_at(file: Path, offset: int, num_bytes: int) -> bytes:
    with file.open("rb", buffering=0) as stream:
        content = os.pread(stream.fileno(), num_bytes, offset)
    if len(content) < num_bytes:
        raise OSError("the file is cut short")
    return content
