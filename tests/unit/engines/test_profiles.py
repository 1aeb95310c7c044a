"""Batch ranges, fingerprints and the list of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines_fixtures import tiny_spec
from pydantic import ValidationError

from engines.errors import BundleError
from engines.profiles import (
    ENGINES_FILE,
    BatchRange,
    EngineKey,
    EngineList,
    EngineRecord,
    input_shapes,
)
from engines.spec import sha256_of

KEY = EngineKey(
    graph_sha256="0" * 64,
    package="tensorrt_rtx",
    package_version="1.7.1",
    compute_capability="SM89",
    batch=BatchRange(min=1, opt=4, max=8),
    sizes_px=((64, 64),),
)


def _record(folder: Path, key: EngineKey = KEY) -> EngineRecord:
    path = folder / "text.plan"
    path.write_bytes(b"plan")
    return EngineRecord(
        stage="text",
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=4,
        fingerprint=key.fingerprint,
        key=key,
        build_s=0.5,
    )


@pytest.mark.parametrize("text", ["8", "1:4:16", "2:2:2"])
def test_a_batch_range_is_read(text: str) -> None:
    batch = BatchRange.parse(text)
    assert batch.min <= batch.opt <= batch.max
    assert BatchRange.parse(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1:2", "4:2:8", "1:8:4", "1:2:3:4", "1.5"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="batch must be"):
        BatchRange.parse(text)


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="min <= opt <= max"):
        BatchRange(min=4, opt=2, max=8)


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "1" * 64},
        {"package": "tensorrt"},
        {"package_version": "1.7.2"},
        {"compute_capability": "SM120"},
        {"batch": BatchRange(min=1, opt=4, max=16)},
        {"sizes_px": ((64, 64), (128, 64))},
    ],
)
def test_every_difference_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert KEY.model_copy(update=change).fingerprint != KEY.fingerprint
    assert KEY.model_copy().fingerprint == KEY.fingerprint


def test_shapes_cover_the_batch_range_and_all_sizes() -> None:
    spec = tiny_spec(sizes_px=((64, 64), (128, 32)))
    batch = BatchRange(min=1, opt=4, max=8)
    assert input_shapes(spec, "text", batch) == {"input_ids_BL": ((1, 12), (4, 12), (8, 12))}
    assert input_shapes(spec, "denoise", batch) == {
        "latents_BChw": ((1, 8, 4, 8), (4, 8, 8, 8), (8, 8, 8, 16)),
        "timestep_B": ((1,), (4,), (8,)),
        "text_embeds_BLD": ((1, 12, 32), (4, 12, 32), (8, 12, 32)),
    }
    assert set(input_shapes(spec, "decode", batch)) == {"latents_BChw"}


def test_a_listed_whole_plan_is_found_and_no_other(tmp_path: Path) -> None:
    record = _record(tmp_path)
    EngineList().having(record).save(tmp_path)
    listed = EngineList.load(tmp_path)
    assert listed.find(tmp_path, KEY) == record
    assert listed.find(tmp_path, KEY.model_copy(update={"package_version": "9"})) is None
    (tmp_path / record.file).write_bytes(b"other")
    assert listed.find(tmp_path, KEY) is None
    (tmp_path / record.file).unlink()
    assert listed.find(tmp_path, KEY) is None


def test_a_rebuilt_plan_replaces_its_entry(tmp_path: Path) -> None:
    old = _record(tmp_path, KEY.model_copy(update={"package_version": "1.0"}))
    new = _record(tmp_path)
    assert EngineList().having(old).having(new).engines == (new,)


def test_a_folder_without_a_list_has_no_plans_and_a_damaged_list_is_named(tmp_path: Path) -> None:
    assert EngineList.load(tmp_path).engines == ()
    (tmp_path / ENGINES_FILE).write_text("{")
    with pytest.raises(BundleError, match=f"{tmp_path / ENGINES_FILE} is damaged.*build again"):
        EngineList.load(tmp_path)
