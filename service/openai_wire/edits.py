"""POST /v1/images/edits: how OpenAI's clients ask for a picture from a picture.

Owns what `input_fidelity` means here, and which of the form's files there may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, ValidationError

from service.errors import InvalidRequest
from service.openai_wire.requests import (
    ImagesGeneration,
    PicturesRequest,
    allowed_in_these_words,
    ask,
)
from service.picture_fields import DEFAULT_STRENGTH
from service.schemas import ModelLimits, first_refusal

# Clients write the second one when they give a list.
IMAGE_FILES = ("image", "image[]")
_STRENGTHS = {"high": DEFAULT_STRENGTH / 2, "low": DEFAULT_STRENGTH}


class EditsRequest(PicturesRequest):
    """The fields of the form that are text."""

    strength: float | None = Field(
        default=None, gt=0, le=1, description="How much of image is drawn anew; default 0.5."
    )
    input_fidelity: Literal["high", "low"] | None = Field(
        default=None, description="A strength by name: high is 0.25, low is 0.5."
    )


def parse_edits(
    texts: Mapping[str, str], files: Mapping[str, Sequence[bytes]], limits: ModelLimits
) -> ImagesGeneration:
    """Check a form against the schema and the served model.

    Raises:
        InvalidRequest: names the field, in OpenAI's words, and what is allowed.
    """
    allowed = allowed_in_these_words(limits)
    try:
        request = EditsRequest.model_validate_strings(texts, strict=False)
    except ValidationError as error:
        raise first_refusal(error, EditsRequest, allowed) from None
    image = _only("image", [content for name in IMAGE_FILES for content in files.get(name, ())])
    mask = _only("mask", files.get("mask", ()))
    if image is None:
        raise InvalidRequest(
            "image is required: the picture to start from, as a file",
            field="image",
            allowed=allowed["image"],
        )
    asked = ask(request, limits, image=image, mask=mask, strength=_strength(request))
    return replace(asked, completed_event="image_edit.completed")


def _only(field: str, contents: Sequence[bytes]) -> bytes | None:
    if len(contents) > 1:
        raise InvalidRequest(
            f"{field}: {len(contents)} came, and the model starts from one picture; send one",
            field=field,
            allowed={"num_files": 1},
        )
    return contents[0] if contents else None


def _strength(request: EditsRequest) -> float | None:
    if request.input_fidelity is None:
        return request.strength
    if request.strength is not None:
        raise InvalidRequest(
            "input_fidelity: strength says the same more exactly, give one of them",
            field="input_fidelity",
        )
    return _STRENGTHS[request.input_fidelity]
