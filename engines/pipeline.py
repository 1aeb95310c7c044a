"""From prompts and seeds to pictures.

Owns the order of tokens, text and sampling loop, and what happens when a batch does not fit or a
picture is none. Knows nothing of backends' insides, of requests or of image files.

Shape suffixes: B batch, S steps, L tokens, D width, C channel, H/W pixels, h/w latent.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.embeds import TextEmbeds
from engines.errors import BadPictureError, OutOfMemoryError
from engines.noise import unit_noise
from engines.runtime.base import RuntimeOptions, Stages, run_directly
from engines.runtime.registry import backend_names, exact_backend, is_installed, load_stages
from engines.sampling import Plan, SamplingLoop, plan_steps
from engines.schedule import Schedule
from engines.spec import Configuration, ModelSpec, Precision
from engines.tokenizer import Tokenizer
from engines.verdicts import require_passed

# Some 100 kB a prompt for SD-Turbo's text encoder: a hundred megabytes at most.
_NUM_CACHED_PROMPTS = 1024
_log = logging.getLogger("onestep.engines")


@dataclass(frozen=True)
class Generated:
    """Pictures and the time that each part took.

    Attributes:
        images_BHWC: uint8, one picture per prompt, in order.
        stage_ms: milliseconds spent in "text" (tokens included), "encode" where pictures were
            given, then "denoise" and "decode", or "draw" where a backend runs both as one.
    """

    images_BHWC: NDArray[np.uint8]
    stage_ms: Mapping[str, float]


class Pipeline:
    """A loaded model. A call may run in any thread, and several at once."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        stages: Stages,
        load_exact: Callable[[], Stages] | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        """Join loaded parts; `load` is the usual way.

        Args:
            spec: of the model.
            tokenizer: its own.
            stages: as a backend loaded them.
            load_exact: loads stages of a higher precision, for pictures that came out as none.
            configuration: what the stages run with, for whoever asks.
        """
        self.spec = spec
        self.configuration = configuration or Configuration(
            backend="given", precision=spec.base_precision
        )
        self.num_out_of_memory = 0
        self.embeds = TextEmbeds(tokenizer, stages.text, _NUM_CACHED_PROMPTS)
        self._stages = stages
        self._load_exact = None if load_exact is None else functools.cache(load_exact)
        self._schedule = Schedule.from_spec(spec.schedule)
        self._max_batch: int | None = None

    @classmethod
    def load(
        cls,
        bundle: Path,
        *,
        backend: str | None = None,
        precision: Precision | None = None,
        num_threads: int | None = None,
        options: RuntimeOptions | None = None,
        allow_failed_check: bool = False,
    ) -> Pipeline:
        """Read a bundle and load its stages, after comparing every file with its digest.

        Args:
            bundle: folder with model.json.
            backend: a name of `engines.runtime.registry.BACKENDS`, or two with a comma: the second
                one draws until the first can be loaded. None with no precision either takes the
                first that the bundle prefers and that is installed; else it is "onnx".
            precision: which of the bundle's graphs; None takes its base.
            num_threads: of the CPU; None leaves the choice to the runtime.
            options: whatever else the backend takes; the two above are put into it where given.
            allow_failed_check: load what check.json says draws other pictures, too.

        Raises:
            BundleError: a file is missing or damaged, there are no graphs of that precision, or
                check.json is of other graphs.
            ParityError: check.json says that these pictures are too far from the reference's.
            BackendError: the backend is unknown or cannot load the stages.
        """
        bundle = Path(bundle)
        spec = ModelSpec.load(bundle)
        spec.verify(bundle)
        options = options or RuntimeOptions()
        chosen = _choose(spec, backend, precision or options.precision)
        for name in backend_names(chosen.backend):
            one = chosen.model_copy(update={"backend": name})
            require_passed(bundle, spec, one, allow_failed=allow_failed_check)
        options = replace(
            options,
            precision=chosen.precision,
            num_threads=num_threads or options.num_threads,
        )
        stages = load_stages(chosen.backend, bundle, spec, options)
        exact: Callable[[], Stages] | None = None
        if spec.base_precision == "float32" and chosen.precision != "float32":

            def exact() -> Stages:
                in_float32 = RuntimeOptions("float32", options.num_threads)
                return load_stages(exact_backend(chosen.backend), bundle, spec, in_float32)

        return cls(spec, Tokenizer.load(bundle, spec), stages, exact, chosen)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        steps: int,
        images_BHWC: NDArray[np.uint8] | None = None,
        strength: float = 0.5,
    ) -> Generated:
        """Draw one picture per prompt and seed; a picture does not depend on its batch-mates.

        A batch that does not fit into the device's memory is halved until it does.

        Args:
            prompts: one per picture.
            seeds: one per picture.
            width: in pixels.
            height: in pixels.
            steps: number of denoise steps.
            images_BHWC: pictures to start from, one per prompt; None starts from noise.
            strength: how much of them is drawn anew, in (0, 1].

        Raises:
            ValueError: no prompt, a seed too few or out of range, or a size, number of steps or
                strength that the model was not trained for.
            BackendError: a stage failed, or gave no picture in the highest precision either.
        """
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(
                f"give one seed per prompt, got {len(prompts)} prompts and {len(seeds)} seeds"
            )
        is_from_image = images_BHWC is not None
        plan = plan_steps(self.spec, (width, height), steps, strength if is_from_image else None)
        spans_ms: dict[str, float] = {}
        start_s = time.perf_counter()
        given = self.embeds(prompts)
        spans_ms["text"] = (time.perf_counter() - start_s) * 1000
        if images_BHWC is not None:
            start_s = time.perf_counter()
            given = (self._encode(images_BHWC, plan, len(prompts)), *given)
            spans_ms["encode"] = (time.perf_counter() - start_s) * 1000
        images, latents_BChw = self._draw_halving(self._stages, plan, seeds, given, spans_ms)
        bad_B = _is_no_picture(images, latents_BChw)
        if bad_B.any():
            images = self._draw_again(plan, seeds, given, images, bad_B)
        return Generated(images, spans_ms)

    def memory_bytes(self) -> tuple[int, int] | None:
        """Used and total memory of the accelerator; None where the backend has none of its own."""
        return self._stages.memory_bytes()

    def row_counts(self) -> tuple[int, int]:
        """Rows of pictures drawn, and rows that only filled a batch up to a compiled size."""
        return self._stages.row_counts()

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Draw and drop one batch of every size, so that the first request waits for no set-up."""
        width, height = self.spec.sizes_px[0]
        for batch_size in batch_sizes:
            prompts = [f"warm up {index}" for index in range(batch_size)]
            self.generate(prompts, range(batch_size), width=width, height=height, steps=1)

    def _encode(self, images_BHWC: NDArray[np.uint8], plan: Plan, num: int) -> NDArray[Any]:
        width, height = plan.size_px
        if self._stages.encode is None:
            raise ValueError(f"{self.spec.name} draws from text alone: leave the picture out")
        if images_BHWC.shape != (num, height, width, 3) or images_BHWC.dtype != np.uint8:
            raise ValueError(
                f"pictures must be uint8 of shape {(num, height, width, 3)}, "
                f"got {images_BHWC.dtype} of shape {images_BHWC.shape}"
            )
        (latents_BChw,) = self._stages.encode(images_BHWC)
        return np.asarray(latents_BChw)

    def _draw_halving(
        self,
        stages: Stages,
        plan: Plan,
        seeds: Sequence[int],
        given: tuple[NDArray[Any], ...],
        spans_ms: dict[str, float],
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Draw in batches that fit, and remember what fitted."""
        parts: list[tuple[NDArray[Any], ...]] = []
        begin = 0
        while begin < len(seeds):
            size = min(len(seeds) - begin, self._max_batch or len(seeds))
            chunk = slice(begin, begin + size)
            try:
                parts.append(
                    self._draw(stages, plan, seeds[chunk], [g[chunk] for g in given], spans_ms)
                )
            except OutOfMemoryError:
                self.num_out_of_memory += 1
                if size == 1:
                    raise
                self._max_batch = size // 2
                continue
            begin += size
        images_BHWC, latents_BChw = (np.concatenate(column) for column in zip(*parts, strict=True))
        return images_BHWC, latents_BChw

    def _draw(
        self,
        stages: Stages,
        plan: Plan,
        seeds: Sequence[int],
        given: Sequence[NDArray[Any]],
        spans_ms: dict[str, float],
    ) -> tuple[NDArray[Any], ...]:
        shape = self.spec.latent_shape(*plan.size_px)
        num_steps = len(plan.timesteps)
        noise_BSChw = np.stack([unit_noise(seeds, shape, s) for s in range(num_steps)], axis=1)
        timestep_BS = np.tile(np.array(plan.timesteps, dtype=np.int64), (len(seeds), 1))
        is_direct = stages.run is run_directly
        loop = SamplingLoop(stages, self._schedule, plan, spans_ms if is_direct else {})
        start_s = time.perf_counter()
        drawn = stages.run(plan, loop, (noise_BSChw, timestep_BS, *given))
        if not is_direct:
            spans_ms["draw"] = spans_ms.get("draw", 0) + (time.perf_counter() - start_s) * 1000
        return drawn

    def _draw_again(
        self,
        plan: Plan,
        seeds: Sequence[int],
        given: Sequence[NDArray[Any]],
        images_BHWC: NDArray[np.uint8],
        bad_B: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """Draw the rows that are no pictures once more, in the highest precision."""
        which = np.flatnonzero(bad_B)
        if self._load_exact is not None:
            again = [seeds[int(index)] for index in which]
            rows = tuple(g[which] for g in given)
            redrawn, latents = self._draw_halving(self._load_exact(), plan, again, rows, {})
            if not _is_no_picture(redrawn, latents).any():
                images_BHWC = images_BHWC.copy()
                images_BHWC[which] = redrawn
                return images_BHWC
        raise BadPictureError(
            f"{len(which)} of {len(bad_B)} pictures came out flat or not finite: check the bundle "
            "with `onestep-engines check`"
        )


def _choose(spec: ModelSpec, backend: str | None, precision: Precision | None) -> Configuration:
    """What to run: what was asked, else what the bundle prefers and this machine has."""
    if backend is None and precision is None:
        for entry in spec.preferred:
            if is_installed(entry.backend):
                _log.info("%s runs with %s %s", spec.name, entry.backend, entry.precision)
                return entry
            _log.warning(
                "%s would be fastest with %s, which is not installed", spec.name, entry.backend
            )
    return Configuration(backend=backend or "onnx", precision=precision or spec.base_precision)


def _is_no_picture(
    images_BHWC: NDArray[np.uint8], latents_BChw: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Rows whose latents hold NaN or infinity, or whose pixels are all the same."""
    pixels_BN = images_BHWC.reshape(len(images_BHWC), -1)
    is_flat_B = pixels_BN.min(axis=1) == pixels_BN.max(axis=1)
    is_finite_B = np.isfinite(latents_BChw).reshape(len(latents_BChw), -1).all(axis=1)
    bad_B: NDArray[np.bool_] = is_flat_B | ~is_finite_B
    return bad_B
