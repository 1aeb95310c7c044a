"""Text embeddings that were wanted lately.

Owns a bounded cache in front of the text stage. Type-as-you-go and several pictures of one prompt
ask for the same text again and again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.runtime.base import Stage
from engines.tokenizer import Tokenizer

Row = tuple[NDArray[Any], ...]


class TextEmbeds:
    """Prompts to the text stage's outputs; the least recently used ones are forgotten.

    Threads may share it: two that miss the same prompt at once both compute it.
    """

    def __init__(self, tokenizer: Tokenizer, text: Stage, capacity: int) -> None:
        """Put a cache of `capacity` prompts, which may be 0, before the text stage."""
        self._tokenizer = tokenizer
        self._text = text
        self._capacity = capacity
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._lock = threading.Lock()
        self._num_hits = 0
        self._num_misses = 0

    @property
    def counts(self) -> tuple[int, int]:
        """How many distinct prompts of calls were found, and how many had to be computed."""
        with self._lock:
            return self._num_hits, self._num_misses

    def __call__(self, prompts: Sequence[str]) -> Row:
        """The outputs of the text stage, one row per prompt, in order."""
        found: dict[str, Row] = {}
        missing: list[str] = []
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                row = self._rows.get(prompt)
                if row is None:
                    missing.append(prompt)
                else:
                    self._rows.move_to_end(prompt)
                    found[prompt] = row
            self._num_hits += len(found)
            self._num_misses += len(missing)
        if missing:
            outputs = self._text(self._tokenizer.encode(missing))
            for index, prompt in enumerate(missing):
                found[prompt] = tuple(output[index] for output in outputs)
            self._keep({prompt: found[prompt] for prompt in missing})
        rows = [found[prompt] for prompt in prompts]
        return tuple(np.stack(column) for column in zip(*rows, strict=True))

    def _keep(self, rows: dict[str, Row]) -> None:
        with self._lock:
            # A row is a view of its batch's output: copied, it does not keep the others alive.
            self._rows.update(
                (prompt, tuple(a.copy() for a in row)) for prompt, row in rows.items()
            )
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)
