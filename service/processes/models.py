"""From bundles to what the API must know of them, to loaded pipelines, and to newer versions.

Owns the meeting of `engines` and the service's records, and the watch on bundles that are replaced
while they are served. Knows neither queue nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EnginesError
from engines.spec import ModelSpec, sha256_of
from engines.tokenizer import Tokenizer
from service.errors import StartError
from service.schemas import ModelLimits
from service.settings import Settings
from service.telemetry import EngineFacts, Telemetry, log_event

if TYPE_CHECKING:
    from service.engine_thread import ImagePipeline

_LOOK_S = 2.0


def load_models(bundles: Sequence[Path]) -> ModelLimits:
    """The first bundle's limits, with the others' beside it.

    Raises:
        BundleError: a file is missing or damaged.
        StartError: two bundles hold models of one name.
    """
    first, *others = [load_limits(bundle) for bundle in bundles]
    names = [limits.name for limits in (first, *others)]
    for name in names:
        if names.count(name) > 1:
            raise StartError(f"two bundles are named {name}: requests could not tell them apart")
    return replace(first, others=tuple(others))


def load_limits(bundle: Path) -> ModelLimits:
    """What a bundle's model accepts.

    Raises:
        BundleError: a file is missing or damaged.
    """
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    tokenizer = Tokenizer.load(bundle, spec)
    return ModelLimits(
        name=spec.name,
        description=spec.description,
        license=spec.license,
        sizes_px=spec.sizes_px,
        max_steps=spec.max_steps,
        max_prompt_chars=spec.text.max_prompt_chars,
        max_tokens=spec.text.max_tokens,
        count_tokens=tokenizer.num_tokens,
        examples=spec.examples,
        styles=spec.styles,
        created=int((bundle / "model.json").stat().st_mtime),
        can_start_from_image="encode" in spec.stages,
        timesteps=spec.student_timesteps[spec.max_steps],
        num_train_timesteps=spec.schedule.num_train_timesteps,
    )


def loaders(
    settings: Settings, limits: ModelLimits, telemetry: Telemetry
) -> dict[str, Callable[[], ImagePipeline]]:
    """What loads each model's pipeline and shows its engine, by the model's name."""
    # An API process has no use for it, nor for what it imports.
    from engines.pipeline import Pipeline

    def loader(bundle: Path) -> Callable[[], ImagePipeline]:
        def load() -> ImagePipeline:
            pipeline = Pipeline.load(
                bundle,
                backend=settings.backend,
                num_threads=settings.num_threads,
                allow_failed_check=settings.allow_failed_check,
            )
            telemetry.engines.note(
                EngineFacts(
                    model=pipeline.spec.name,
                    backend=pipeline.configuration.backend,
                    precision=pipeline.configuration.precision,
                    prompt_counts=lambda: pipeline.embeds.counts,
                    num_out_of_memory=lambda: pipeline.num_out_of_memory,
                    row_counts=pipeline.row_counts,
                    memory_bytes=pipeline.memory_bytes,
                )
            )
            return pipeline

        return load

    names = [one.name for one in limits.all]
    return {name: loader(path) for name, path in zip(names, settings.model, strict=True)}


async def watch_bundles(bundles: Sequence[Path], reload: Callable[[Path], Awaitable[None]]) -> None:
    """Call `reload` for each bundle whose model.json has changed, or for all of them on SIGHUP.

    A bundle that is not whole yet, or damaged, is looked at again; the old one serves on.
    """
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    seen = {bundle: _digest(bundle) for bundle in bundles}
    while True:
        try:
            await asyncio.wait_for(asked.wait(), _LOOK_S)
        except TimeoutError:
            pass
        is_asked = asked.is_set()
        asked.clear()
        for bundle in bundles:
            digest = await asyncio.to_thread(_digest, bundle)
            if digest is None or (digest == seen[bundle] and not is_asked):
                continue
            try:
                await reload(bundle)
            except (EnginesError, OSError) as error:
                log_event("reload_failed", level=logging.ERROR, bundle=bundle, error=str(error))
                continue
            seen[bundle] = digest
            log_event("reloaded", bundle=bundle, digest=digest)


def _digest(bundle: Path) -> str | None:
    try:
        return sha256_of(bundle / "model.json")
    except OSError:
        return None
