"""From a well-formed request to one without open choices.

Owns what depends on the model that a request asks for: sizes, steps, strengths, how long a prompt
may be, and what is drawn where a field is left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import InvalidRequest
from service.jobs import BatchKey, ImageFormat, Priority
from service.picture_fields import DEFAULT_STRENGTH, nearest_timestep
from service.schemas.limits import ModelLimits
from service.schemas.refusals import allowed_values
from service.schemas.requests import MAX_SEED, PRIORITIES, GenerateRequest, JobRequest

# A null character would end the prompt early wherever it is stored.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Generation:
    """A request that has been checked and has no open choices left.

    Attributes:
        image: a file as it came, not looked into yet; there where the key has a strength.
        mask: likewise, and never without an image.
        webhook: URL as it came, not looked at yet.
    """

    key: BatchKey
    prompt: str
    seeds: tuple[int, ...]
    format: ImageFormat
    is_format_given: bool
    num_tokens: int
    quality: int | None = None
    priority: Priority | None = None
    image: bytes | None = None
    mask: bytes | None = None
    webhook: str | None = None

    @property
    def num_pixel_steps(self) -> int:
        """What the request costs: pixels of all pictures, through all steps."""
        return self.key.width * self.key.height * self.key.steps * len(self.seeds)


def resolve(request: GenerateRequest, limits: ModelLimits) -> Generation:
    """Check a well-formed request against the model it asks for and close its open choices.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    limits = limits.named(request.model)

    def refuse(field: str, detail: str) -> InvalidRequest:
        return InvalidRequest(detail, field=field, allowed=allowed_values(limits)[field])

    if not request.prompt.strip():
        raise refuse("prompt", "prompt must not be empty")
    # Characters first: counting them is free, counting tokens of a huge text is not.
    if len(request.prompt) > limits.max_prompt_chars:
        raise refuse(
            "prompt",
            f"prompt has {len(request.prompt)} characters, "
            f"at most {limits.max_prompt_chars} are allowed",
        )
    if _CONTROL.search(request.prompt):
        raise refuse("prompt", "prompt must hold no control characters but tabs and line ends")
    num_tokens = limits.count_tokens(request.prompt)
    if num_tokens > limits.max_tokens:
        raise refuse(
            "prompt", f"prompt needs {num_tokens} tokens, at most {limits.max_tokens} are allowed"
        )
    if request.steps > limits.max_steps:
        raise refuse("steps", f"steps must be 1 to {limits.max_steps}")
    width, height = _size(request, limits, refuse)
    strength = _strength(request, limits, refuse)
    seed = random.randrange(MAX_SEED + 1) if request.seed is None else request.seed
    return Generation(
        key=BatchKey(limits.name, width, height, request.steps, strength),
        prompt=request.prompt,
        seeds=tuple((seed + i) % (MAX_SEED + 1) for i in range(request.num_images)),
        format=request.format,
        is_format_given="format" in request.model_fields_set,
        num_tokens=num_tokens,
        quality=request.quality,
        priority=None if request.priority is None else PRIORITIES[request.priority],
        image=request.image,
        mask=request.mask,
        webhook=request.webhook if isinstance(request, JobRequest) else None,
    )


def _strength(
    request: GenerateRequest,
    limits: ModelLimits,
    refuse: Callable[[str, str], InvalidRequest],
) -> float | None:
    """The nearest strength that makes a difference; None where nothing is started from.

    So the keys of batches stay few, and what draws the same way is drawn together.
    """
    if request.image is None:
        for field in ("mask", "strength"):
            if getattr(request, field) is not None:
                raise refuse(
                    field, f"{field} needs a picture to start from: add image or leave {field} out"
                )
        return None
    if not limits.can_start_from_image:
        raise refuse("image", f"image: {limits.name} draws from text alone, leave it out")
    given = DEFAULT_STRENGTH if request.strength is None else request.strength
    start = nearest_timestep(given, limits.timesteps, limits.num_train_timesteps)
    num_left = len(limits.timesteps) - start
    if request.steps > num_left:
        raise InvalidRequest(
            f"steps must be 1 to {num_left} at strength {given:g}: "
            "a weaker one starts nearer to the end",
            field="steps",
            allowed={"min": 1, "max": num_left},
        )
    return limits.strengths[start]


def _size(
    request: GenerateRequest,
    limits: ModelLimits,
    refuse: Callable[[str, str], InvalidRequest],
) -> tuple[int, int]:
    """The first of the model's sizes that agrees with what was given."""
    fitting = [
        (width, height)
        for width, height in limits.sizes_px
        if request.width in (None, width) and request.height in (None, height)
    ]
    if fitting:
        return fitting[0]
    sizes = ", ".join(f"{width}x{height}" for width, height in limits.sizes_px)
    widths = {width for width, _ in limits.sizes_px}
    field = "height" if request.width is None or request.width in widths else "width"
    raise refuse(field, f"width x height must be one of {sizes}")
