"""Plans that are no plans: bytes beside a list, for the tests of what is listed and refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engines.plans import EngineRecord
from engines.profiles import BatchRange, EngineKey, Platform

KEY = EngineKey(
    stage="text",
    architecture_sha256="0" * 64,
    weights_sha256="1" * 64,
    platform=Platform(package="tensorrt_rtx", package_version="1.7.1", compute_capability="SM89"),
    batch=BatchRange.of(4),
    sizes_px=((64, 64),),
)


def write_plan(
    folder: Path, key: EngineKey = KEY, name: str = "text-b4.plan", content: bytes = b"plan"
) -> EngineRecord:
    """Write `content` as a plan and return what the list would say of it."""
    (folder / name).write_bytes(content)
    return EngineRecord(
        file=name,
        graph_file=f"{key.stage}.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        fingerprint=key.fingerprint,
        key=key,
        made_by="compile",
        build_s=0.5,
    )
