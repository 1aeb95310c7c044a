"""Which thread makes a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from service_fixtures import FakeClock, make_job

from service.encoders import QUICK_S, Encoders

SMALL_HWC = np.zeros((8, 8, 3), np.uint8)
LARGE_HWC = np.zeros((16, 16, 3), np.uint8)


class _Encoder:
    """Takes as long as it is told for a size, and notes its thread."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.takes_s = {SMALL_HWC.shape: 0.0, LARGE_HWC.shape: 20 * QUICK_S}
        self.error: Exception | None = None
        self.threads: list[str] = []

    def __call__(self, pixels_HWC: NDArray[np.uint8], *_: object) -> bytes:
        self.threads.append(threading.current_thread().name)
        self._clock.now_s += self.takes_s[pixels_HWC.shape]
        if self.error is not None:
            raise self.error
        return b"a file"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def encoder(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> _Encoder:
    encoder = _Encoder(clock)
    monkeypatch.setattr("service.encoders.encode_image", encoder)
    return encoder


@pytest.fixture
def encoders(clock: FakeClock) -> Iterator[Encoders]:
    encoders = Encoders(1, clock)
    yield encoders
    encoders.close()


async def _thread_of(
    encoders: Encoders, encoder: _Encoder, pixels_HWC: NDArray[np.uint8], *, here: bool = True
) -> str:
    encoding = encoders.begin(make_job(), pixels_HWC, here_if_quick=here)
    assert await encoding.content() == b"a file"
    thread = encoder.threads[-1]
    return "here" if thread == threading.current_thread().name else thread.partition("_")[0]


async def test_a_file_that_takes_no_time_is_made_where_it_is_asked_for(
    encoders: Encoders, encoder: _Encoder
) -> None:
    # Nothing is known of the first one.
    assert [await _thread_of(encoders, encoder, SMALL_HWC) for _ in range(3)] == [
        *("encode", "here", "here"),
    ]
    assert await _thread_of(encoders, encoder, SMALL_HWC, here=False) == "encode"


async def test_a_file_that_takes_its_time_keeps_nobody_back(
    encoders: Encoders, encoder: _Encoder
) -> None:
    # What is known of one size says nothing of another.
    await _thread_of(encoders, encoder, SMALL_HWC)
    assert [await _thread_of(encoders, encoder, LARGE_HWC) for _ in range(3)] == 3 * ["encode"]
    encoder.takes_s[SMALL_HWC.shape] = 20 * QUICK_S
    assert [await _thread_of(encoders, encoder, SMALL_HWC) for _ in range(2)] == [
        *("here", "encode"),
    ]


async def test_what_the_encoder_raises_is_the_files_wherever_it_is_made(
    encoders: Encoders, encoder: _Encoder
) -> None:
    await _thread_of(encoders, encoder, SMALL_HWC)
    encoder.error = ValueError("no such format")
    for here in (True, False):
        encoding = encoders.begin(make_job(), SMALL_HWC, here_if_quick=here)
        with pytest.raises(ValueError, match="no such format"):
            await encoding.content()
