"""Which of a bundle's TensorRT plans this machine may run, and what lies beside them.

Owns the choice of plans by batch size, the reason where none fits, and the files of the runtime's
own cache. Knows neither TensorRT nor torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import BackendError, BundleError
from engines.profiles import ENGINES_FILE, BatchRange, EngineKey, EngineList, EngineRecord
from engines.spec import ALL_STAGES, ModelSpec, Precision, StageName

ENGINES_FOLDER = "engines"
BUILD_AGAIN = "build again on this machine with `onestep-engines build`"
_DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What a plan must have been built for.

    Attributes:
        package: "tensorrt" or "tensorrt_rtx".
        package_version: its own.
        compute_capability: of the GPU, such as "SM90".
    """

    package: str
    package_version: str
    compute_capability: str


def plan_stages(spec: ModelSpec, precision: Precision | None) -> tuple[StageName, ...]:
    """The stages that need a plan."""
    files = spec.stage_files(precision)
    return tuple(stage for stage in ALL_STAGES if stage in files)


def listed_packages(folder: Path) -> tuple[str, ...]:
    """The packages that a folder's plans were built with.

    Raises:
        BundleError: the list is damaged.
        BackendError: it lists none.
    """
    packages = tuple(dict.fromkeys(r.key.package for r in EngineList.load(folder).engines))
    if not packages:
        raise BackendError(f"{folder} lists no plans: build them with `onestep-engines build`")
    return packages


def list_state(folder: Path) -> tuple[int, int] | None:
    """Something that is another once plans were added to a folder's list."""
    try:
        status = (folder / ENGINES_FILE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def usable_plans(
    folder: Path, spec: ModelSpec, precision: Precision | None, machine: Machine
) -> dict[BatchRange, dict[StageName, EngineRecord]]:
    """Every batch range that all stages have a plan of, for this machine and these graphs.

    Raises:
        BundleError: the list is damaged.
        BackendError: there is none; says how a listed one differs.
    """
    files = spec.stage_files(precision)
    wanted = plan_stages(spec, precision)
    found: dict[BatchRange, dict[StageName, EngineRecord]] = {}
    reason = None
    for record in EngineList.load(folder).engines:
        if record.stage not in wanted:
            continue
        difference = _difference(record.key, files[record.stage].sha256, spec, machine)
        if difference is None:
            found.setdefault(record.key.batch, {})[record.stage] = record
        else:
            reason = f"{record.file} {difference}"
    whole = {batch: plans for batch, plans in found.items() if len(plans) == len(wanted)}
    if whole:
        return whole
    if reason is None:
        batch, plans = next(iter(found.items()), ("any", {}))
        missing = ", ".join(stage for stage in wanted if stage not in plans)
        reason = f"batch {batch} has no plan of {missing}"
    raise BackendError(f"no plans in {folder} fit: {reason}: {BUILD_AGAIN}")


def _difference(key: EngineKey, graph: str, spec: ModelSpec, machine: Machine) -> str | None:
    if key.package != machine.package:
        return f"is of {key.package} and {machine.package} is installed"
    if key.package_version != machine.package_version:
        return (
            f"is of {key.package} {key.package_version} and {machine.package_version} is installed"
        )
    if key.compute_capability != machine.compute_capability:
        return f"is for {key.compute_capability} and the GPU here is {machine.compute_capability}"
    if key.graph_sha256 != graph:
        return "is of another graph than the bundle's"
    if set(key.sizes_px) != set(spec.sizes_px):
        return "is for other sizes than the bundle's"
    return None


def batch_sizes(
    ranges: Iterable[BatchRange], wanted: tuple[int, ...] | None
) -> dict[int, BatchRange]:
    """Batch sizes to prepare, ascending, each with the narrowest range that takes it.

    Args:
        ranges: at least one.
        wanted: sizes asked for; None takes what the ranges suggest: a range of one size that one,
            a wider one its best, its largest and the powers of two between.

    Raises:
        BackendError: a wanted size is in no range.
    """
    listed = sorted(ranges, key=lambda r: (r.max - r.min, r.max))
    if wanted is None:
        powers = {2**exponent for exponent in range(14)}
        sizes = {size for r in listed for size in powers | {r.opt, r.max} if r.min <= size <= r.max}
    else:
        sizes = set(wanted)
    chosen: dict[int, BatchRange] = {}
    for size in sorted(sizes):
        fitting = [r for r in listed if r.min <= size <= r.max]
        if not fitting:
            texts = ", ".join(str(r) for r in listed)
            raise BackendError(
                f"no plan takes a batch of {size}, only {texts}: add one with "
                f"`onestep-engines build --batch {size}`"
            )
        chosen[size] = fitting[0]
    return chosen


def load_plan(folder: Path, record: EngineRecord) -> bytes:
    """A listed plan's content, which is code and must be what the list says.

    Raises:
        BundleError: the file is missing or differs from its digest.
    """
    if EngineList.load(folder).find(folder, record.key) is None:
        raise BundleError(
            f"{folder / record.file} is missing or damaged (sha256 differs from its list): "
            "build again with `onestep-engines build`"
        )
    content = (folder / record.file).read_bytes()
    # Read after it was compared, so compared once more: the bytes that run are those listed.
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(f"{folder / record.file} was replaced while it was read: start again")
    return content


def read_cache(path: Path) -> bytes | None:
    """What `write_cache` kept, or None where there is no whole file of it."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cache(path: Path, content: bytes) -> None:
    """Keep what a runtime compiled for this GPU, whole or not at all.

    A folder that cannot be written costs the next start its time and nothing else.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(hashlib.sha256(content).digest() + content)
        partial.replace(path)
    except OSError as error:
        _log.warning("runtime_cache_not_kept", extra={"path": str(path), "reason": str(error)})
        partial.unlink(missing_ok=True)
