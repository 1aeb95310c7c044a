"""The threads that turn pixels into files, while the engine and the event loop go on.

Owns the pool, a file to come, and how long files of a size take. Knows neither queue nor engine.

Shape suffixes: H/W pixels, C channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.images import encode_image
from service.jobs import ImageFormat, Job

# A file that takes less is begun and done before a thread of the pool would have woken up for it,
# on a machine with other work. What its thread does next waits for it.
QUICK_S = 0.0003
# Of the newest file in what is expected of the next one.
_NEWEST_WEIGHT = 0.2


@dataclass(frozen=True)
class Encoding:
    """A file to come, and when it was begun on the encoders' clock."""

    started_s: float
    file: Future[bytes]

    async def content(self) -> bytes:
        """The file, once it is there.

        Raises:
            Exception: whatever the encoder raised.
        """
        # To wait for what is there already takes two turns of the event loop.
        return self.file.result() if self.file.done() else await asyncio.wrap_future(self.file)


class Encoders:
    """Encodes pictures side by side."""

    def __init__(self, num_threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start no thread yet."""
        self.now_s = clock
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")
        self._expected_s: dict[tuple[ImageFormat, tuple[int, ...]], float] = {}

    def begin(
        self, job: Job, pixels_HWC: NDArray[np.uint8], *, here_if_quick: bool = False
    ) -> Encoding:
        """Encode a picture as its job wants it; may be called from any thread.

        With `here_if_quick` the calling thread does it, where files of this size take no time worth
        a way to another one.
        """
        started_s = self.now_s()
        expected_s = self._expected_s.get((job.format, pixels_HWC.shape), QUICK_S)
        if not here_if_quick or expected_s >= QUICK_S:
            return Encoding(started_s, self._pool.submit(self._encode, job, pixels_HWC))
        file: Future[bytes] = Future()
        try:
            file.set_result(self._encode(job, pixels_HWC))
        except Exception as error:
            file.set_exception(error)
        return Encoding(started_s, file)

    def _encode(self, job: Job, pixels_HWC: NDArray[np.uint8]) -> bytes:
        started_s = self.now_s()
        content = encode_image(pixels_HWC, job.format, job.quality)
        took_s = self.now_s() - started_s
        kind = (job.format, pixels_HWC.shape)
        before_s = self._expected_s.get(kind, took_s)
        # Two threads at once lose one of two measurements of the same.
        self._expected_s[kind] = before_s + _NEWEST_WEIGHT * (took_s - before_s)
        return content

    def close(self) -> None:
        """Begin no further file; one that has begun is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
