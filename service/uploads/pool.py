"""A few decoder processes, started when first needed and replaced when they die.

Owns their life and how long a request may wait for one. What a picture may be is decided in
`service.uploads.decoding`, which runs there; a crash, a bomb or an endless loop ends that process
and one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process

from service.errors import InvalidRequest, PictureTooLarge, ProblemError, QueueFull, status_of
from service.telemetry import log_event
from service.uploads.decoder import ANSWERED, ASKED

# From the moment that a process has the picture, its start included.
DECODE_TIMEOUT_S = 10.0
# For a process to become free.
WAIT_TIMEOUT_S = 5.0
_BUSY_RETRY_S = 1.0
# A process may be ended from outside, which is no fault of the picture that it had.
_MAX_TRIES = 2
# Ended by its limit on processor time; Windows has no such signal.
_CPU_LIMIT_STATUS = -getattr(signal, "SIGXCPU", 0)
_REFUSALS: dict[str, type[ProblemError]] = {
    status_of(kind("")).code: kind for kind in (InvalidRequest, PictureTooLarge)
}


class PictureDecoders:
    """Decodes pictures of strangers, each in one of a few processes beside this one."""

    def __init__(
        self,
        max_px: int,
        num_processes: int,
        *,
        decode_timeout_s: float = DECODE_TIMEOUT_S,
        wait_timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        self._max_px = max_px
        self._decode_timeout_s = decode_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._free = asyncio.Semaphore(num_processes)
        self._idle: list[Process] = []

    @property
    def pids(self) -> list[int]:
        """Of the processes that wait for a picture."""
        return [process.pid for process in self._idle]

    async def decode(self, picture: bytes, mask: bytes | None, size_px: tuple[int, int]) -> bytes:
        """Pixels to start from, as `service.uploads.decoding.starting_picture` gives them.

        Raises:
            InvalidRequest: it is no picture that is accepted, or it cannot be decoded.
            PictureTooLarge: it has too many pixels.
            QueueFull: every process was busy for too long.
        """
        if mask == b"":
            raise InvalidRequest("mask is empty: send a PNG file, or leave it out", field="mask")
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise QueueFull(
                "too many pictures are waiting to be decoded", retry_after_s=_BUSY_RETRY_S
            ) from None
        try:
            for _ in range(_MAX_TRIES):
                answer = await self._try(picture, mask, size_px)
                if answer is not None:
                    return answer
        finally:
            self._free.release()
        raise InvalidRequest(
            "image cannot be decoded: save it again as a plain PNG or JPEG", field="image"
        )

    async def close(self) -> None:
        """End the processes; a later picture starts new ones."""
        while self._idle:
            await _end(self._idle.pop())

    async def _try(
        self, picture: bytes, mask: bytes | None, size_px: tuple[int, int]
    ) -> bytes | None:
        """Decode once; None when the process died of it, or was dead already."""
        process = self._idle.pop() if self._idle else await self._start()
        is_whole = False
        try:
            async with asyncio.timeout(self._decode_timeout_s):
                is_pixels, content = await _exchange(process, picture, mask or b"", size_px)
            is_whole = True
        except TimeoutError:
            raise _too_slow() from None
        except (ConnectionError, asyncio.IncompleteReadError):
            status = await process.wait()
            log_event("decoder_died", level=logging.WARNING, pid=process.pid, status=status)
            if status == _CPU_LIMIT_STATUS:
                raise _too_slow() from None
            return None
        finally:
            if is_whole:
                self._idle.append(process)
            else:
                await _end(process)
        if is_pixels:
            return content
        refusal = json.loads(content)
        raise _REFUSALS[refusal.pop("code")](refusal.pop("detail"), **refusal)

    async def _start(self) -> Process:
        # The same modules as here, and nothing else of the environment, which may hold secrets. A
        # session of its own: Ctrl-C asks the service for a drain and must not end its decoders.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "service.uploads.decoder", str(self._max_px)),
            stdin=PIPE,
            stdout=PIPE,
            env={"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
            start_new_session=True,
        )


def _too_slow() -> InvalidRequest:
    return InvalidRequest(
        "image takes too long to decode: save it again as a plain PNG or JPEG", field="image"
    )


async def _exchange(
    process: Process, picture: bytes, mask: bytes, size_px: tuple[int, int]
) -> tuple[bool, bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(ASKED.pack(*size_px, len(picture), len(mask)))
    process.stdin.write(picture)
    process.stdin.write(mask)
    await process.stdin.drain()
    head = await process.stdout.readexactly(ANSWERED.size)
    is_pixels, num_bytes = ANSWERED.unpack(head)
    return is_pixels, await process.stdout.readexactly(num_bytes)


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
