"""Start on one backend and go over to a better one once it can be loaded.

A first start has no compiled plans, and compiling takes minutes: a service draws with what it has
meanwhile. Owns the moment of the change, which lies between two batches, and the trial before it.
Knows no backend: both sides are `Stages`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray

from engines.errors import EnginesError
from engines.runtime.base import Arrays, Stage, Stages

Body = Callable[..., Arrays]
HostArrays = tuple[NDArray[Any], ...]

# Of the last batches, one per kind is tried on the better stages before they are served.
_NUM_TRIED = 16
_log = logging.getLogger(__name__)


class WarmingStages:
    """Its `stages` draw with `fallback` until `look` has found something better.

    A batch is drawn by one side from its first step to its last, whatever happens meanwhile.
    """

    def __init__(
        self,
        fallback: Stages,
        load: Callable[[], Stages],
        changed: Callable[[], Hashable] = lambda: None,
    ) -> None:
        """Serve `fallback` for the time being.

        Args:
            fallback: what can be served now.
            load: loads the better stages, or raises an error of this package while it cannot.
            changed: a cheap value that is another one once `load` may give another result; the
                same value twice saves the second try.
        """
        self._current = fallback
        self._encode = fallback.encode
        self._load = load
        self._changed = changed
        self._tried: Hashable = object()
        self._said = ""
        self._seen: OrderedDict[tuple[Hashable, int], tuple[Body, HostArrays]] = OrderedDict()
        self._lock = threading.Lock()
        self._pinned = threading.local()
        self.stages = Stages(
            text=self._stage("text"),
            denoise=self._stage("denoise"),
            decode=self._stage("decode"),
            encode=None if fallback.encode is None else self._stage("encode"),
            run=self._run,
            batch_sizes=fallback.batch_sizes,
            memory_bytes=lambda: self._current.memory_bytes(),
            row_counts=lambda: self._current.row_counts(),
        )

    def look(self) -> bool:
        """Try to load the better stages, draw the kinds of batches seen so far with them, change.

        Returns:
            Whether they are served from the next batch on.
        """
        now = self._changed()
        if now == self._tried:
            return False
        self._tried = now
        try:
            better = self._load()
            self._try(better)
        except EnginesError as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.info("backend_not_ready", extra={"reason": self._said})
            return False
        self._current = better
        _log.info("backend_changed")
        return True

    def watch(self, interval_s: float, stop: threading.Event) -> threading.Thread:
        """Look every `interval_s` seconds, in a thread that ends with the process or `stop`."""

        def look_again() -> None:
            while not stop.wait(interval_s):
                try:
                    self.look()
                except Exception:  # the thread must go on; the fallback is served meanwhile
                    _log.exception("backend_not_loaded")

        thread = threading.Thread(target=look_again, name="engines-warming", daemon=True)
        thread.start()
        return thread

    def _stage(self, name: str) -> Stage:
        def call(*inputs: Any) -> Arrays:
            side = getattr(self._pinned, "side", None) or self._current
            # Better stages may lack an encoder that the service has promised.
            stage: Stage | None = getattr(side, name) or self._encode
            assert stage is not None, "the stage is there where the fallback has it"
            return stage(*inputs)

        return call

    def _run(self, key: Hashable, body: Body, inputs: HostArrays) -> HostArrays:
        with self._lock:
            # The arrays are the batch's own; a runner records what it is given the size of.
            self._seen[key, len(inputs[0])] = body, inputs
            self._seen.move_to_end((key, len(inputs[0])))
            while len(self._seen) > _NUM_TRIED:
                self._seen.popitem(last=False)
        return self._run_on(self._current, key, body, inputs)

    def _run_on(self, side: Stages, key: Hashable, body: Body, inputs: HostArrays) -> HostArrays:
        self._pinned.side = side
        try:
            return side.run(key, body, inputs)
        finally:
            self._pinned.side = None

    def _try(self, better: Stages) -> None:
        with self._lock:
            seen = list(self._seen.items())
        for (key, _), (body, inputs) in seen:
            self._run_on(better, key, body, inputs)
