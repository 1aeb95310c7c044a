"""Wire models and the only validation of user input.

Owns what a request may say and how a refusal names the field and what is allowed. What a model can
do arrives as `ModelLimits`; where those come from is not known here. A prompt never appears in an
error text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.jobs import BatchKey, ImageFormat, Priority
from service.picture_fields import DEFAULT_STRENGTH, PictureFile, nearest_timestep, strengths_of
from service.uploads.header import MEDIA_TYPES

PriorityName = Literal["interactive", "background"]
PRIORITIES: dict[str, Priority] = {
    "interactive": Priority.INTERACTIVE,
    "background": Priority.BACKGROUND,
}

MAX_SEED = 2**32 - 1
MAX_NUM_IMAGES = 16
# Far more than any request has; a picture in base64 holds none of what is counted.
MAX_JSON_MARKS = 4096
_JSON_MARKS = (b",", b":", b"[", b"{")
_MAX_ECHO_CHARS = 64
# A null character would end the prompt early wherever it is stored.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class ModelLimits:
    """What the served model accepts and says about itself.

    Attributes:
        sizes_px: (width, height) pairs; the first is the default.
        max_tokens: tokens a prompt may need, begin and end included.
        count_tokens: tokens that a prompt needs, on the same count.
        created: when the bundle was written, in seconds since 1970; 0 where that is not known.
        can_start_from_image: whether pictures can be drawn from pictures.
        timesteps: descending, where a drawing of the most steps passes; it starts from a picture
            at one of them.
        num_train_timesteps: of the schedule; a strength is a share of it.
        others: models that are served beside this one, which is what is drawn with where a request
            names none.
    """

    name: str
    description: str
    license: str
    sizes_px: tuple[tuple[int, int], ...]
    max_steps: int
    max_prompt_chars: int
    max_tokens: int
    count_tokens: Callable[[str], int]
    examples: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    created: int = 0
    can_start_from_image: bool = False
    timesteps: tuple[int, ...] = ()
    num_train_timesteps: int = 1000
    others: tuple[ModelLimits, ...] = ()

    @property
    def all(self) -> tuple[ModelLimits, ...]:
        """Every model that is served, this one first."""
        return (self, *self.others)

    def named(self, name: str | None) -> ModelLimits:
        """The model that a request asks for.

        Raises:
            InvalidRequest: it is not served.
        """
        for one in self.all:
            if name in (None, one.name):
                return one
        names = [one.name for one in self.all]
        raise InvalidRequest(f"model must be {' or '.join(names)}", field="model", allowed=names)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Every strength that makes a difference, descending; none without pictures."""
        if not self.can_start_from_image:
            return ()
        return strengths_of(self.timesteps, self.num_train_timesteps)


class GenerateRequest(BaseModel):
    """Body of POST /v1/generate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str = Field(description="What to draw.")
    model: str | None = Field(default=None, description="Default: the served model.")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Drawn at random and returned when missing."
    )
    width: int | None = Field(default=None, ge=1, description="Pixels.")
    height: int | None = Field(default=None, ge=1, description="Pixels.")
    steps: int = Field(default=1, ge=1, description="Denoise steps.")
    num_images: int = Field(
        default=1, ge=1, le=MAX_NUM_IMAGES, description="Picture i has seed + i."
    )
    format: ImageFormat = "png"
    quality: int | None = Field(
        default=None, ge=0, le=100, description="Of jpeg and webp; png is always exact."
    )
    priority: PriorityName | None = Field(
        default=None, description="Background lets others go first. Default: the API key's."
    )
    image: PictureFile | None = Field(
        default=None, description="Start from it: PNG, JPEG or WebP in base64, or a data: URL."
    )
    mask: PictureFile | None = Field(
        default=None, description="Of the image's size; redraw where it is transparent."
    )
    strength: float | None = Field(
        default=None, gt=0, le=1, description="How much of image is drawn anew; default 0.5."
    )


class JobRequest(GenerateRequest):
    """Body of POST /v1/jobs."""

    webhook: str | None = Field(
        default=None, description="URL that gets a signed POST when the job has ended."
    )


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


def check_json_size(body: bytes) -> None:
    """Refuse JSON of very many values before it is parsed.

    A body may be large because a picture is in it. As many bytes of empty lists or short names take
    seconds to parse and fifty times their size in memory, and nobody else is served meanwhile.

    Raises:
        InvalidRequest: more values than any request has.
    """
    if len(body) > MAX_JSON_MARKS and sum(map(body.count, _JSON_MARKS)) > MAX_JSON_MARKS:
        raise InvalidRequest(
            "the body holds too many names and values", allowed={"max_values": MAX_JSON_MARKS}
        )


def parse_generation(
    body: bytes, limits: ModelLimits, kind: type[GenerateRequest] = GenerateRequest
) -> Generation:
    """Check a JSON body against the schema and the served model.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    check_json_size(body)
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise first_refusal(error, kind, allowed_values(limits)) from None
    return resolve(request, limits)


def parse_generation_form(
    texts: Mapping[str, str],
    files: Mapping[str, bytes],
    limits: ModelLimits,
    kind: type[GenerateRequest] = GenerateRequest,
) -> Generation:
    """The same of a form, where numbers are text.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    try:
        request = kind.model_validate_strings(texts, strict=False)
    except ValidationError as error:
        raise first_refusal(error, kind, allowed_values(limits)) from None
    return resolve(request.model_copy(update=dict(files)), limits)


def allowed_values(limits: ModelLimits) -> dict[str, object]:
    """Field -> what it may be, as plain JSON."""
    sizes = [list(size) for size in limits.sizes_px]
    return {
        "prompt": {
            "min_chars": 1,
            "max_chars": limits.max_prompt_chars,
            "max_tokens": limits.max_tokens,
        },
        "model": [one.name for one in limits.all],
        "seed": {"min": 0, "max": MAX_SEED},
        "width": sizes,
        "height": sizes,
        "steps": {"min": 1, "max": limits.max_steps},
        "num_images": {"min": 1, "max": MAX_NUM_IMAGES},
        "format": list(get_args(ImageFormat)),
        "quality": {"min": 0, "max": 100},
        "priority": list(PRIORITIES),
        "image": list(MEDIA_TYPES.values()),
        "mask": list(MEDIA_TYPES.values()),
        "strength": {"above": 0, "max": 1},
    }


def first_refusal(
    found: ValidationError, request: type[BaseModel], allowed: Mapping[str, object]
) -> InvalidRequest:
    """Translate the first of pydantic's findings on a request.

    Args:
        found: what validation raised.
        request: the wire model that was wanted.
        allowed: field -> what it may be; fields without an entry say it in pydantic's words.
    """
    # Inputs stay out: an error that carried them could carry a prompt into a log.
    error: Any = found.errors(include_input=False, include_url=False)[0]
    if error["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {error['ctx']['error']}")
    if not error["loc"]:
        return InvalidRequest("the body must be a JSON object")
    field = str(error["loc"][0])[:_MAX_ECHO_CHARS]
    if error["type"] == "extra_forbidden":
        return InvalidRequest(
            f"{field} is no field of this request",
            field=field,
            allowed=list(request.model_fields),
        )
    if error["type"] == "missing":
        return InvalidRequest(f"{field} is required", field=field, allowed=allowed.get(field))
    return InvalidRequest(f"{field}: {error['msg']}", field=field, allowed=allowed.get(field))


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
