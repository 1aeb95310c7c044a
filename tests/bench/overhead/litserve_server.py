"""LitServe around the same engine, with a window in which it waits for a batch to fill.

Hands out a picture that was encoded beforehand, which favours it over a service that encodes.

    python -m tests.bench.overhead.litserve_server PORT WINDOW_MS
"""

import sys
from typing import Any

import litserve  # type: ignore[import-untyped]  # the package ships no types
from fastapi import Response

from tests.bench.overhead.engine import MAX_BATCH_SIZE, Engine, encode_jpeg, texture_HWC


class Drawing(litserve.LitAPI):  # type: ignore[misc]
    """A batch of seeds becomes as many pictures."""

    def setup(self, device: Any) -> None:
        """In the worker's process."""
        self._engine = Engine.from_environment()
        self._picture = encode_jpeg(texture_HWC(0))

    # LitServe reads this annotation to learn what it shall parse, so it must not be text.
    def decode_request(self, request: dict[str, Any]) -> int:
        """Take the seed; its prompt has been parsed with it."""
        return int(request["seed"])

    def batch(self, inputs: list[int]) -> list[int]:
        """Leave them a list."""
        return inputs

    def predict(self, seeds: list[int]) -> list[bytes]:
        """Draw the batch."""
        self._engine.draw(len(seeds), seeds[0])
        return [self._picture] * len(seeds)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Leave them a list."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Answer as bytes, without JSON around them."""
        return Response(output, media_type="image/jpeg")


if __name__ == "__main__":
    drawing = Drawing(max_batch_size=MAX_BATCH_SIZE, batch_timeout=float(sys.argv[2]) / 1000)
    litserve.LitServer(drawing, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
        generate_client_file=False,
    )
