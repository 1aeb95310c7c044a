"""The last few results of a costly function, loaded once however many threads ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """A least-recently-used store whose misses are computed outside its lock."""

    def __init__(self, load: Callable[[Key], Value], num_held: int) -> None:
        """Keep `num_held` results of `load`."""
        self._load = load
        self._num_held = max(1, num_held)
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, Future[Value]] = OrderedDict()

    def get(self, key: Key) -> Value:
        """The value of a key; a second thread waits for the first one's load."""
        with self._lock:
            future = self._held.get(key)
            is_mine = future is None
            if future is None:
                future = self._held[key] = Future()
            self._held.move_to_end(key)
            while len(self._held) > self._num_held:
                self._held.popitem(last=False)
        if is_mine:
            try:
                future.set_result(self._load(key))
            except BaseException as error:
                with self._lock:  # a later caller may have more luck
                    if self._held.get(key) is future:
                        del self._held[key]
                future.set_exception(error)
        return future.result()
