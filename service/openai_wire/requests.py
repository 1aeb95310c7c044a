"""What OpenAI's images API asks for, and how to ask for a picture of a prompt.

Owns which of its fields mean something for a one-step model, which are accepted without effect and
which are refused with the reason. What remains is one of `service.schemas`' requests, checked there
against the served model. A prompt never appears in an error text.

Source: OpenAI API reference, images; `seed`, `num_inference_steps`, `guidance_scale` and
`negative_prompt` are the extra names that SGLang and vLLM-Omni share, `priority` is our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.jobs import ImageFormat
from service.schemas import (
    MAX_SEED,
    GenerateRequest,
    Generation,
    ModelLimits,
    PriorityName,
    allowed_values,
    check_json_size,
    first_refusal,
    resolve,
)

MAX_N = 10
# An ordinary request: what it asks for is named otherwise there.
_NAMES = {
    "width": "size",
    "height": "size",
    "steps": "num_inference_steps",
    "num_images": "n",
    "format": "output_format",
    "quality": "output_compression",
}
_SAME_NAMES = ("prompt", "model", "seed", "image", "mask", "strength")
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class PicturesRequest(BaseModel):
    """What every way of asking for pictures shares."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str = Field(description="What to draw.")
    model: str | None = Field(default=None, description="Default: the served model.")
    n: int | None = Field(default=None, ge=1, le=MAX_N, description="Picture i has seed + i.")
    size: str | None = Field(default=None, description="WIDTHxHEIGHT in pixels, or auto.")
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="Default: b64_json. A url holds for a while."
    )
    output_format: ImageFormat | None = None
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of jpeg and webp."
    )
    stream: bool | None = Field(default=None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        default=None, ge=0, le=3, description="No effect: one step has no part-way picture."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None, description="Pictures are opaque: transparent is refused."
    )
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = Field(
        default=None, description="No effect: the model has one quality."
    )
    user: str | None = Field(default=None, description="No effect; not kept.")
    safety_identifier: str | None = Field(default=None, description="No effect; not kept.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(
        default=None, description="A distilled student takes no guidance: 0 or 1."
    )
    negative_prompt: str | None = Field(
        default=None, description="Needs guidance, which a distilled student lacks: empty."
    )
    priority: PriorityName | None = Field(
        default=None, description="Background lets others go first. Default: the API key's."
    )


class ImagesRequest(PicturesRequest):
    """Body of POST /v1/images/generations."""

    style: Literal["vivid", "natural"] | None = Field(
        default=None, description="No effect: name a style in the prompt."
    )
    moderation: Literal["auto", "low"] | None = Field(default=None, description="No effect.")


@dataclass(frozen=True)
class ImagesGeneration:
    """A checked request and how its answer is to look."""

    generation: Generation
    is_url: bool
    is_stream: bool
    completed_event: str = "image_generation.completed"


def parse_images(body: bytes, limits: ModelLimits) -> ImagesGeneration:
    """Check a body against the schema and the served model.

    Raises:
        InvalidRequest: names the field, in OpenAI's words, and what is allowed.
    """
    check_json_size(body)
    try:
        request = ImagesRequest.model_validate_json(body)
    except ValidationError as error:
        raise first_refusal(error, ImagesRequest, allowed_in_these_words(limits)) from None
    return ask(request, limits)


def ask(request: PicturesRequest, limits: ModelLimits, **more: Any) -> ImagesGeneration:
    """A well-formed request as one of ours, checked against the served model.

    Args:
        request: as it came.
        limits: of the model.
        more: fields of `GenerateRequest` beside those that every such request has.

    Raises:
        InvalidRequest: names the field, in OpenAI's words, and what is allowed.
    """
    _refuse_what_cannot_be(request)
    try:
        wanted = GenerateRequest(**_shared_fields(request)).model_copy(update=more)
        generation = resolve(wanted, limits)
    except InvalidRequest as error:
        raise _in_these_words(error, limits) from None
    return ImagesGeneration(generation, request.response_format == "url", bool(request.stream))


def _refuse_what_cannot_be(request: PicturesRequest) -> None:
    if request.background == "transparent":
        raise InvalidRequest(
            "background: the model draws opaque pictures",
            field="background",
            allowed=["auto", "opaque"],
        )
    if request.guidance_scale not in (None, 0.0, 1.0):
        raise InvalidRequest(
            "guidance_scale: a distilled student takes no guidance, leave it out",
            field="guidance_scale",
            allowed=[0, 1],
        )
    if request.negative_prompt:
        raise InvalidRequest(
            "negative_prompt: it needs guidance, which a distilled student lacks; leave it out",
            field="negative_prompt",
            allowed={"max_chars": 0},
        )
    if request.stream and request.response_format == "url":
        raise InvalidRequest(
            "response_format: a stream carries the pictures themselves",
            field="response_format",
            allowed=["b64_json"],
        )


def _shared_fields(request: PicturesRequest) -> dict[str, Any]:
    """The same wish in the words of POST /v1/generate."""
    fields: dict[str, Any] = {
        "prompt": request.prompt,
        "model": request.model,
        "seed": request.seed,
        "steps": request.num_inference_steps or 1,
        "num_images": request.n or 1,
        "format": request.output_format or "png",
        "quality": request.output_compression,
        "priority": request.priority,
    }
    if request.size not in (None, "auto"):
        match = _SIZE.fullmatch(request.size)
        if match is None:
            raise InvalidRequest("size must be WIDTHxHEIGHT or auto", field="size")
        fields |= {"width": int(match[1]), "height": int(match[2])}
    return fields


def _in_these_words(error: InvalidRequest, limits: ModelLimits) -> InvalidRequest:
    """The refusal of an ordinary request, with the names and values of this one."""
    own = error.field or ""
    field = _NAMES.get(own, own)
    allowed = allowed_in_these_words(limits)
    if field == "size":
        detail = f"size must be one of {', '.join(_sizes(limits))}"
    else:
        detail = field + error.detail.removeprefix(own)
    return InvalidRequest(detail, field=field, allowed=allowed.get(field, error.allowed))


def _sizes(limits: ModelLimits) -> list[str]:
    """What `size` may be."""
    return ["auto", *(f"{width}x{height}" for width, height in limits.sizes_px)]


def allowed_in_these_words(limits: ModelLimits) -> dict[str, object]:
    """Field -> what it may be, as plain JSON."""
    theirs = allowed_values(limits)
    shared = {name: theirs[name] for name in _SAME_NAMES}
    renamed = {_NAMES[name]: theirs[name] for name in ("steps", "format", "quality")}
    return {
        **shared,
        **renamed,
        "n": {"min": 1, "max": MAX_N},
        "size": _sizes(limits),
    }
