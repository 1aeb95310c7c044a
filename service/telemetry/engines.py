"""What loaded engines tell of themselves, read at each scrape.

Owns the metrics that an engine counts by itself. A bundle that is loaded anew begins at 0, which a
rate takes for what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class EngineFacts:
    """One loaded model.

    Attributes:
        prompt_counts: prompts found in the cache of text embeddings, and computed.
        num_out_of_memory: batches that did not fit and were halved.
        row_counts: rows of pictures in batches of a compiled size, and rows that filled them up.
        memory_bytes: used and total of the accelerator; None where there is none.
    """

    model: str
    backend: str
    precision: str
    prompt_counts: Callable[[], tuple[int, int]]
    num_out_of_memory: Callable[[], int]
    row_counts: Callable[[], tuple[int, int]]
    memory_bytes: Callable[[], tuple[int, int] | None]


class EngineCollector(Collector):
    """Shows the engines that are loaded now."""

    def __init__(self) -> None:
        self._engines: dict[str, EngineFacts] = {}

    def note(self, facts: EngineFacts) -> None:
        """A model was loaded, perhaps in place of an older one."""
        self._engines[facts.model] = facts

    def collect(self) -> Iterator[Metric]:
        """Ask every engine."""
        known = GaugeMetricFamily(
            "onestep_engine_info",
            "1 for each loaded engine.",
            labels=["model", "backend", "precision"],
        )
        prompts = CounterMetricFamily(
            "onestep_prompt_cache_total",
            "Prompts of batches by whether their embedding was kept: hit or miss.",
            labels=["model", "result"],
        )
        out_of_memory = CounterMetricFamily(
            "onestep_out_of_memory_total",
            "Batches that did not fit into memory and were halved.",
            labels=["model"],
        )
        rows = CounterMetricFamily(
            "onestep_batch_rows_total",
            "Rows of batches of a compiled size, of pictures or padding; 0 where any size runs.",
            labels=["model", "kind"],
        )
        memory = GaugeMetricFamily(
            "onestep_gpu_memory_bytes", "The accelerator's memory.", labels=["kind"]
        )
        for facts in list(self._engines.values()):
            known.add_metric([facts.model, facts.backend, facts.precision], 1)
            for result, count in zip(("hit", "miss"), facts.prompt_counts(), strict=True):
                prompts.add_metric([facts.model, result], count)
            for kind, count in zip(("picture", "padding"), facts.row_counts(), strict=True):
                rows.add_metric([facts.model, kind], count)
            out_of_memory.add_metric([facts.model], facts.num_out_of_memory())
        # All engines of a process share one accelerator.
        told = [told for facts in self._engines.values() if (told := facts.memory_bytes())]
        for kind, count in zip(("used", "total"), told[0] if told else (), strict=False):
            memory.add_metric([kind], count)
        yield from (known, prompts, out_of_memory, rows, memory)
