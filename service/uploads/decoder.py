"""The program that decodes pictures: `python -m service.uploads.decoder MAX_PX`.

Owns its frames, one on stdout for each on stdin, and the limits on memory, time and files under
which it works. Keeps nothing between pictures.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import time
import warnings
from typing import BinaryIO

from PIL import Image

from service.errors import ProblemError, status_of
from service.uploads.decoding import starting_picture

# Width and height wanted, bytes of the picture, bytes of the mask (0: there is none).
ASKED = struct.Struct(">IIII")
# Whether pixels follow (else a refusal as JSON), and their number of bytes.
ANSWERED = struct.Struct(">?I")

# A decoded picture takes 4 bytes a pixel. Up to three of them are alive in a conversion, and
# progressive JPEG and WebP hold about as much again.
_BYTES_PER_PX = 24
_BASE_BYTES = 2**27
_MAX_CPU_S = 5


def answer(asked: BinaryIO, answered: BinaryIO, max_px: int) -> bool:
    """Read one frame and answer it; False once there are no more."""
    head = asked.read(ASKED.size)
    if len(head) < ASKED.size:
        return False
    width, height, num_picture, num_mask = ASKED.unpack(head)
    picture = asked.read(num_picture)
    mask = asked.read(num_mask) if num_mask else None
    _allow_cpu(_MAX_CPU_S)
    try:
        content, is_pixels = starting_picture(picture, mask, (width, height), max_px), True
    except ProblemError as error:
        content, is_pixels = _refusal(error), False
    answered.write(ANSWERED.pack(is_pixels, len(content)) + content)
    answered.flush()
    return True


def _refusal(error: ProblemError) -> bytes:
    document = {
        "code": status_of(error).code,
        "detail": error.detail,
        "field": error.field,
        "allowed": error.allowed,
    }
    return json.dumps(document).encode()


def _confine(max_px: int) -> None:
    """Bound this process's memory, and let it neither open nor write a file from here on."""
    if sys.platform == "win32":
        return  # no such limits there; the time limit of the other side holds
    import resource

    if sys.platform == "linux":  # macOS does not bound address space
        num_bytes = _BASE_BYTES + _BYTES_PER_PX * max_px
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    # Descriptors below the limit stay open: stdin, stdout, stderr and the copy of stdout.
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))


def _allow_cpu(seconds: int) -> None:
    """End this process (SIGXCPU) once it has worked so long from now on."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard))


def main() -> None:
    """Answer frames until stdin ends, which it does with the service, however that ends."""
    max_px = int(sys.argv[1])
    # Pillow warns of sizes below max_px and of damage that it can pass over.
    warnings.simplefilter("ignore")
    Image.preinit()
    # What the service holds open and lets its children inherit, an address it listens on perhaps.
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 8192)
    # Frames go where stdout was; whatever a library prints goes to stderr.
    answered = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _confine(max_px)
    while answer(sys.stdin.buffer, answered, max_px):
        pass


if __name__ == "__main__":
    main()
