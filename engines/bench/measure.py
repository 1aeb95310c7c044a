"""Timing one or several loaded pipelines, batch by batch.

Owns the order of the runs and what each of them draws. Measures the pipeline alone: no queue, no
HTTP, no image files. Knows nothing of what the times mean.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from engines.pipeline import Pipeline

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Configuration:
    """One way to run a model.

    Attributes:
        name: shown beside its figures; unique within a bench.
        load: returns the pipeline, ready to draw.
        device: where its arithmetic happens; says which peaks bound it.
    """

    name: str
    load: Callable[[], Pipeline]
    device: Device = "cpu"


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        batch_sizes: measured one after another.
        size_px: width and height of the pictures.
        steps: denoise steps.
        num_runs: timed batches per configuration and batch size.
        num_warm_up: batches drawn before them and dropped.
        seed: of the order of the configurations within each round.
    """

    batch_sizes: tuple[int, ...]
    size_px: tuple[int, int]
    steps: int = 1
    num_runs: int = 20
    num_warm_up: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """One timed batch: milliseconds of the whole, and of each stage by name."""

    whole_ms: float
    stage_ms: Mapping[str, float]


class Stopwatch:
    """Draws and times batches; no prompt and no seed comes twice to a pipeline.

    A pipeline may remember what a text encoded to, so a repeated prompt would measure the memory.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], plan: Plan) -> None:
        """Measure `pipelines`, by configuration name, as planned."""
        self._pipelines = pipelines
        self._plan = plan
        self._numbers = itertools.count()
        self._random = random.Random(plan.seed)

    def measure(
        self, batch_size: int, advance: Callable[[], object] = lambda: None
    ) -> dict[str, list[Run]]:
        """Time every pipeline once per round, in a new order each round.

        What changes on the machine meanwhile then meets all of them alike. Within a round all
        draw the same prompts and seeds.

        Args:
            batch_size: pictures per run.
            advance: called after each run, warm-up included.

        Returns:
            the timed runs by configuration, in the order of the rounds.
        """
        runs: dict[str, list[Run]] = {name: [] for name in self._pipelines}
        for round_number in range(-self._plan.num_warm_up, self._plan.num_runs):
            numbers = list(itertools.islice(self._numbers, batch_size))
            # The number comes first: a tokenizer with few tokens would cut it off at the end.
            prompts = [f"{number} of many pictures" for number in numbers]
            order = list(self._pipelines)
            self._random.shuffle(order)
            for name in order:
                run = self._draw(self._pipelines[name], prompts, numbers)
                if round_number >= 0:
                    runs[name].append(run)
                advance()
        return runs

    def _draw(self, pipeline: Pipeline, prompts: list[str], seeds: list[int]) -> Run:
        width, height = self._plan.size_px
        start_s = time.perf_counter()
        generated = pipeline.generate(
            prompts, seeds, width=width, height=height, steps=self._plan.steps
        )
        return Run((time.perf_counter() - start_s) * 1000, dict(generated.stage_ms))
