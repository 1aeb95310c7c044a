"""The threads that turn pixels into files, while the engine and the event loop go on.

Owns the pool and a file to come. Knows neither queue nor engine.

Shape suffixes: H/W pixels, C channel.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.images import encode_image
from service.jobs import Job


@dataclass(frozen=True)
class Encoding:
    """A file to come, and when it was begun on `time.perf_counter`."""

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

    def __init__(self, num_threads: int) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")

    def begin(self, job: Job, pixels_HWC: NDArray[np.uint8]) -> Encoding:
        """Encode a picture as its job wants it; may be called from any thread."""
        started_s = time.perf_counter()
        return Encoding(
            started_s, self._pool.submit(encode_image, pixels_HWC, job.format, job.quality)
        )

    def close(self) -> None:
        """Begin no further file; one that has begun is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
