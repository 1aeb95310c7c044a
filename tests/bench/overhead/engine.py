"""An engine whose speed is known: a batch of B pictures takes base + B * per_image, asleep.

A GPU leaves the CPU to the server while it draws, and so does sleep. The pictures are real ones,
so that the true encoder has its true work. Owns pace and pictures; knows nothing of any server, so
that each runs the same engine.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SIZE_PX = 512
MAX_BATCH_SIZE = 8
# The service's own: what it makes of these pictures is what the peers hand out ready-made.
JPEG_QUALITY = 92
# Found by trying: a picture of so much texture takes 68 kB at that quality.
TEXTURE_GAIN = 106.0
_NUM_OCTAVES = 8
# More than a processor's caches hold, as pictures that come from a GPU are not in them either.
_NUM_TEXTURES, _NUM_SHIFTS = 4, 8
_NUM_PICTURES = _NUM_TEXTURES * _NUM_SHIFTS
_DIAL = struct.Struct("<dd")
DIAL_VARIABLE = "BENCH_DIAL"


class Pace(NamedTuple):
    """How long a batch takes."""

    base_ms: float
    per_image_ms: float

    def batch_ms(self, num_images: int) -> float:
        """The time that a batch sleeps."""
        return self.base_ms + num_images * self.per_image_ms

    @property
    def images_per_s(self) -> float:
        """In full batches, if sleep were exact."""
        return 1000 * MAX_BATCH_SIZE / self.batch_ms(MAX_BATCH_SIZE)


NO_OP = Pace(0.0, 0.0)
# In pictures per second at batch 8: about 306 and 879.
PACES = {"306/s": Pace(2.0, 3.0), "879/s": Pace(1.0, 1.0)}


class Dial:
    """The pace, in a file that the measuring process turns and every engine's process reads."""

    def __init__(self, path: Path) -> None:
        """Open it, and make it where there is none."""
        if not path.exists():
            path.write_bytes(_DIAL.pack(*NO_OP))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _DIAL.size)

    def turn(self, pace: Pace) -> None:
        """Set the pace of the batches that begin from now on."""
        self._memory[:] = _DIAL.pack(*pace)

    def read(self) -> Pace:
        """The present pace."""
        return Pace(*_DIAL.unpack(self._memory))


class Engine:
    """Draws by sleeping; one at a time, as a GPU does."""

    def __init__(self, dial: Dial) -> None:
        """Make the pictures: a few textures, each also pushed aside by several widths."""
        self._dial = dial
        textures = [texture_HWC(seed) for seed in range(_NUM_TEXTURES)]
        self._pictures_NHWC = np.stack(
            [
                np.roll(texture, shift * SIZE_PX // _NUM_SHIFTS, axis=1)
                for shift in range(_NUM_SHIFTS)
                for texture in textures
            ]
        )

    @classmethod
    def from_environment(cls) -> Engine:
        """The engine of a server that the measuring process started."""
        return cls(Dial(Path(os.environ[DIAL_VARIABLE])))

    def draw(self, num_images: int, seed: int) -> NDArray[np.uint8]:
        """Return pictures as uint8 BHWC: views, as a GPU writes them without the CPU's help."""
        pace_ms = self._dial.read().batch_ms(num_images)
        if pace_ms:
            time.sleep(pace_ms / 1000)
        first = seed % (_NUM_PICTURES - MAX_BATCH_SIZE + 1)
        return self._pictures_NHWC[first : first + num_images]


def texture_HWC(seed: int) -> NDArray[np.uint8]:
    """A picture with structure of every size, about as much of it as a photograph has.

    Noise on ever finer grids at falling strength. Source: Perlin, An Image Synthesizer, 1985.
    """
    generator = np.random.default_rng(seed)
    levels_HWC = np.full((SIZE_PX, SIZE_PX, 3), 128.0, dtype=np.float32)
    for octave in range(1, _NUM_OCTAVES + 1):
        num_cells = 2**octave
        corners = generator.standard_normal((num_cells + 1, num_cells + 1, 3), dtype=np.float32)
        position = np.arange(SIZE_PX, dtype=np.float32) * num_cells / SIZE_PX
        cell = position.astype(int)
        part = position - cell
        part = part * part * (3 - 2 * part)
        rows = corners[cell] + (corners[cell + 1] - corners[cell]) * part[:, None, None]
        columns = rows[:, cell] + (rows[:, cell + 1] - rows[:, cell]) * part[:, None]
        levels_HWC += TEXTURE_GAIN * 0.6**octave * columns
    return np.clip(levels_HWC, 0, 255).astype(np.uint8)


def encode_jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """As the service encodes at its own quality."""
    content: bytes = simplejpeg.encode_jpeg(
        pixels_HWC, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return content


def measure_raw(engine: Engine, duration_s: float) -> float:
    """Pictures per second of full batches one after another, without any server."""
    num_images, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < duration_s:
        num_images += len(engine.draw(MAX_BATCH_SIZE, num_images))
    return num_images / elapsed_s
