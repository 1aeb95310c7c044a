"""The fields of a request that starts from a picture: the picture itself, and how strong.

Owns how a picture is written in JSON and which strengths a model can tell apart. What is inside the
picture is not looked at here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pybase64
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

DEFAULT_STRENGTH = 0.5
# Enough to tell timesteps apart.
_STRENGTH_DIGITS = 4


def _picture_bytes(given: object) -> bytes:
    """The file inside base64 or a data: URL."""
    if not isinstance(given, str):
        raise PydanticCustomError("picture", "must be base64 or a data: URL")
    if given.startswith(("http:", "https:")):
        raise PydanticCustomError("picture", "addresses are not fetched: send the picture itself")
    if given.startswith("data:"):
        head, _, given = given.partition(",")
        if not head.endswith(";base64"):
            raise PydanticCustomError("picture", "a data: URL must be in base64")
    try:
        return pybase64.b64decode(given, validate=True)
    except ValueError:
        raise PydanticCustomError(
            "picture", "must be base64 without line breaks, or a data: URL"
        ) from None


PictureFile = Annotated[
    bytes,
    PlainValidator(_picture_bytes),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


def nearest_timestep(strength: float, timesteps: Sequence[int], num_train_timesteps: int) -> int:
    """Index of the timestep to start at, as `engines.sampling.plan_steps` chooses it."""
    wanted = strength * (num_train_timesteps - 1)
    return min(range(len(timesteps)), key=lambda index: abs(timesteps[index] - wanted))


def strengths_of(timesteps: Sequence[int], num_train_timesteps: int) -> tuple[float, ...]:
    """For each timestep the strength that starts there, above 0."""
    last = num_train_timesteps - 1
    least = 10**-_STRENGTH_DIGITS
    return tuple(max(round(t / last, _STRENGTH_DIGITS), least) for t in timesteps)
