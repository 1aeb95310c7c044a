"""Which form captioned pictures come in: Parquet, tars, or a folder of pictures.

Owns the guess from a path, and the words for a path that holds none of them.
"""

from __future__ import annotations

from pathlib import Path

from distill.config import ConfigError, DataConfig
from distill.dataset.folder import METADATA_NAMES, FolderRows, find_files
from distill.dataset.parquet import ParquetRows
from distill.dataset.rows import PICTURE_SUFFIXES, Rows
from distill.dataset.tars import TarRows

REMEDY = (
    "give a Parquet file, a folder of Parquet or .tar files, or a folder of pictures each with a "
    "NAME.txt beside it or a row in metadata.jsonl or metadata.csv"
)


def open_rows(
    source: str, config: DataConfig, field: str, index_folder: Path | None = None
) -> Rows:
    """The rows at a path, none of them decoded yet.

    Args:
        source: path of a file or a folder.
        config: how rows are read.
        field: what to call the path in an error.
        index_folder: where the indexes of the files are kept.

    Raises:
        ConfigError: there is nothing of a known form, or of more than one.
    """
    path = Path(source)
    label = f"{field} {path}"
    # A batch of the shuffled order touches every block of its window, and the next one's first.
    num_held = config.shuffle_blocks + 2
    if path.is_file():
        if path.suffix == ".parquet":
            return ParquetRows([path], label, num_held, index_folder)
        if path.suffix == ".tar":
            return TarRows([path], label, index_folder)
        raise ConfigError(f"{field}: {path} is of no known form: {REMEDY}")
    if not path.is_dir():
        raise ConfigError(f"{field}: nothing at {path}: {REMEDY}")
    parquets, tars = find_files(path, ".parquet"), find_files(path, ".tar")
    if parquets and tars:
        raise ConfigError(f"{field}: {path} holds both Parquet and .tar files: name one of them")
    if parquets:
        return ParquetRows(parquets, label, num_held, index_folder)
    if tars:
        return TarRows(tars, label, index_folder)
    metadata = [p for p in find_files(path, ".jsonl", ".csv") if p.name in METADATA_NAMES]
    if not metadata and not find_files(path, *PICTURE_SUFFIXES):
        raise ConfigError(f"{field}: no captioned picture in {path}: {REMEDY}")
    return FolderRows(path, label)
