"""The realtime protocol's messages: a text frame in, a picture with its header or a problem out.

Owns their form. What a message may ask is what a body of POST /v1/generate may ask, checked by the
same function; only `id` is read here. Knows no socket.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, get_args

import orjson

from service.errors import InvalidRequest, ProblemError, problem_document, retry_ms
from service.jobs import ImageFormat, JobDone
from service.schemas import Generation, ModelLimits, check_json_size, parse_generation

# The widest whole number that a browser's JSON carries exactly.
MAX_ID = 2**53 - 1
DEFAULT_FORMAT: ImageFormat = "jpeg"


@dataclass(frozen=True)
class Wish:
    """A message whose `id` has been read: the rest is a body of POST /v1/generate."""

    id: int | None
    body: bytes


def read_wish(text: str, seed: int) -> Wish:
    """Part a message from its id; `seed` is for messages without one.

    Raises:
        InvalidRequest: it is no JSON object, or its id is no whole number.
    """
    message = text.encode()
    check_json_size(message)
    try:
        fields = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the message is not valid JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the message must be a JSON object")
    wish_id = fields.pop("id", None)
    # JSON's true is an int to Python.
    if wish_id is not None and (type(wish_id) is not int or not 0 <= wish_id <= MAX_ID):
        raise InvalidRequest(
            f"id must be a whole number from 0 to {MAX_ID}",
            field="id",
            allowed={"min": 0, "max": MAX_ID},
        )
    if fields.get("seed") is None:
        fields["seed"] = seed
    return Wish(wish_id, orjson.dumps({"format": DEFAULT_FORMAT} | fields))


def parse_wish(wish: Wish, limits: ModelLimits) -> Generation:
    """Check what a message asks for.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    generation = parse_generation(wish.body, limits)
    if len(generation.seeds) != 1:
        raise InvalidRequest(
            "num_images must be 1: a message is answered by one picture",
            field="num_images",
            allowed={"min": 1, "max": 1},
        )
    return generation


def hello_message(limits: ModelLimits, *, seed: int, max_message_bytes: int) -> str:
    """The first message of a connection: what may be asked."""
    return _text(
        {
            "type": "hello",
            "model": limits.name,
            "sizes": [list(size) for size in limits.sizes_px],
            "max_steps": limits.max_steps,
            "max_prompt_chars": limits.max_prompt_chars,
            "max_tokens": limits.max_tokens,
            "formats": list(get_args(ImageFormat)),
            "max_message_bytes": max_message_bytes,
            "seed": seed,
        }
    )


def waiting_message(wish_id: int | None, wait_s: float) -> str:
    """The queue is full; the wish is kept and tried again."""
    return _text({"type": "waiting", "id": wish_id, "retry_after_ms": round(wait_s * 1000)})


def error_message(wish_id: int | None, error: ProblemError, request_id: str) -> str:
    """A problem document that says whose wish it answers."""
    message = problem_document(error, request_id) | {"type": "error", "id": wish_id}
    wait_ms = retry_ms(error)
    if wait_ms is not None:
        message["retry_after_ms"] = wait_ms
    return _text(message)


def picture_frame(
    wish_id: int | None, generation: Generation, done: JobDone, total_ms: float
) -> bytes:
    """The header's length in four bytes, big-endian, the header as JSON, the picture."""
    header = orjson.dumps(
        {
            "id": wish_id,
            "seed": done.seed,
            "format": generation.format,
            "width": generation.key.width,
            "height": generation.key.height,
            "batch_size": done.batch_size,
            "queue_ms": round(done.queue_ms, 2),
            "run_ms": round(done.run_ms, 2),
            "total_ms": round(total_ms, 2),
        }
    )
    return b"".join((struct.pack(">I", len(header)), header, done.image_bytes))


def _text(message: dict[str, Any]) -> str:
    return orjson.dumps(message).decode()
