"""Which plans of a folder serve a bundle here, by batch size.

Owns the batch ranges that all stages share and the batch sizes that follow from them. Which plan is
whose, and why one is refused, is said by `engines.plans`. Knows neither TensorRT nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.errors import PlanError
from engines.plans import ENGINES_FILE, EngineList, choose_plan
from engines.profiles import BatchRange, EngineKey, Platform, engine_key, stage_graphs
from engines.spec import ModelSpec, Precision


def list_state(folder: Path) -> tuple[int, int] | None:
    """Something that is another once plans were added to a folder's list."""
    try:
        status = (folder / ENGINES_FILE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def stage_keys(
    bundle: Path, spec: ModelSpec, platform: Platform, precision: Precision | None
) -> list[EngineKey]:
    """What to ask a folder of plans for, one key per stage; their batch is to be replaced.

    Raises:
        BundleError: a graph is missing or damaged, or the bundle has none in that precision.
    """
    return [
        engine_key(graph, spec.sizes_px, platform, BatchRange.of(1))
        for graph in stage_graphs(bundle, spec, precision)
    ]


def shared_ranges(
    listed: EngineList, folder: Path, keys: list[EngineKey]
) -> tuple[BatchRange, ...]:
    """The batch ranges that every stage has a plan for in the list of `folder`.

    Raises:
        PlanError: there is none; names the first stage that lacks a plan, and why.
    """
    of_stages = [listed.batches(key) for key in keys]
    shared = tuple(batch for batch in of_stages[0] if all(batch in found for found in of_stages))
    if not shared:
        batch = next(iter(of_stages[0]), keys[0].batch)
        for key in keys:
            choose_plan(listed, folder, key.model_copy(update={"batch": batch}))
    return shared


def batch_sizes(
    ranges: Iterable[BatchRange], wanted: tuple[int, ...] | None
) -> dict[int, BatchRange]:
    """Batch sizes to prepare, ascending, each with the narrowest range that takes it.

    Args:
        ranges: at least one.
        wanted: sizes asked for; None takes what the ranges suggest: a range of one size that one,
            a wider one its best, its largest and the powers of two between.

    Raises:
        PlanError: a wanted size is in no range.
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
            raise PlanError(
                f"no plan takes a batch of {size}, only {texts}: add one with "
                f"`onestep-engines build --batch {size}`"
            )
        chosen[size] = fitting[0]
    return chosen
