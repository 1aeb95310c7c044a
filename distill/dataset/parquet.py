"""Parquet shards, read by row group.

Owns finding a row in the row groups of many files, and holding only the last few groups in memory.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.config import ConfigError
from distill.dataset.recent import Recent
from distill.dataset.rows import DamagedRow

logger = logging.getLogger(__name__)

_WORDS = ("captions", "caption", "text", "name", "alt_names", "style", "group")
_LARGE_GROUP_BYTES = 1 << 30
_ARROW_ERRORS = (OSError, ValueError, pa.ArrowException)


class ParquetRows:
    """Rows of Parquet files: `image` bytes, `captions` list or `caption` or `text` string.

    A file whose footer cannot be read gives no row and is counted. A damaged row group costs its
    own rows only.
    """

    def __init__(
        self, files: Sequence[Path], label: str, num_groups_held: int, index_folder: Path | None
    ) -> None:
        """Read the footers.

        Args:
            files: in the order of the rows.
            label: what the user called them.
            num_groups_held: row groups kept in memory at once.
            index_folder: where the files' numbers of rows are kept; None keeps none.

        Raises:
            ConfigError: a file has no pictures in it.
        """
        self.label = label
        self.num_unreadable_files = 0
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        known = sha256()
        for file in files:
            try:
                group_sizes = _indexed(file, label, index_folder)
            except ConfigError:
                raise
            except _ARROW_ERRORS as error:
                logger.warning("skipping %s: %s", file, error)
                self.num_unreadable_files += 1
                continue
            self._groups += [(file, i) for i in range(len(group_sizes))]
            sizes += group_sizes
            known.update(f"{file.name} {group_sizes}\n".encode())
        self.block_sizes = tuple(sizes)
        self.fingerprint = known.hexdigest()
        self._first = np.fromiter(itertools.accumulate(sizes, initial=0), dtype=np.int64)
        self._recent = Recent(self._load, num_groups_held)

    def __len__(self) -> int:
        """Number of rows in readable files."""
        return int(self._first[-1])

    def where(self, index: int) -> str:
        """File, row group and row in it."""
        group, row = self._locate(index)
        file, number = self._groups[group]
        return f"{file.name} row group {number} row {row}"

    def read(self, index: int, *, with_image: bool = True) -> Mapping[str, Any]:
        """Read one row.

        Raises:
            DamagedRow: its row group cannot be read.
        """
        group, row = self._locate(index)
        table = self._recent.get((group, with_image))
        if isinstance(table, Exception):
            raise DamagedRow(f"damaged row group: {' '.join(str(table).split())}") from table
        raw: Mapping[str, Any] = table.slice(row, 1).to_pylist()[0]
        return raw

    def _locate(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._first, index, side="right")) - 1
        return group, index - int(self._first[group])

    def _load(self, key: tuple[int, bool]) -> Any:
        """A table, or why there is none: a damaged group is not read again for each row."""
        group, with_image = key
        file, number = self._groups[group]
        try:
            with pq.ParquetFile(file) as parquet:
                wanted = _WORDS + ("image",) * with_image
                columns = [name for name in parquet.schema_arrow.names if name in wanted]
                table = parquet.read_row_group(number, columns=columns)
                table.validate(full=True)
        except _ARROW_ERRORS as error:
            return error
        if table.num_rows != self.block_sizes[group]:
            return OSError("it changed since the start")
        return table


def _group_sizes(file: Path, label: str) -> list[int]:
    """Rows of each row group, as the footer says."""
    with pq.ParquetFile(file) as parquet:
        metadata, columns = parquet.metadata, parquet.schema_arrow.names
    if "image" not in columns:
        raise ConfigError(
            f"{label}: {file.name} has no column `image`; it has {', '.join(columns)}"
        )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if any(group.total_byte_size > _LARGE_GROUP_BYTES for group in groups):
        logger.warning(
            "%s has row groups above 1 GiB, held whole in memory: write it again with "
            "row_group_size=1000 or fewer",
            file,
        )
    return [group.num_rows for group in groups]


def _indexed(file: Path, label: str, index_folder: Path | None) -> list[int]:
    """The rows of each row group; those of the last start where the file is damaged since.

    Its rows are then replaced one by one as they are drawn, and every other row keeps its place.
    """
    if index_folder is None:
        return _group_sizes(file, label)
    name = sha256(str(file.resolve()).encode()).hexdigest()[:12]
    path = index_folder / f"{file.stem}-{name}.json"
    try:
        sizes = _group_sizes(file, label)
    except _ARROW_ERRORS:
        if not path.is_file():
            raise
        logger.warning("%s cannot be read any more: its rows will be replaced", file)
        before: list[int] = json.loads(path.read_text())
        return before
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(sizes))
    partial.replace(path)
    return sizes
