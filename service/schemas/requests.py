"""The wire models: which fields a request may have, whatever is served."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.jobs import ImageFormat, Priority
from service.picture_fields import PictureFile

PriorityName = Literal["interactive", "background"]
PRIORITIES: dict[str, Priority] = {
    "interactive": Priority.INTERACTIVE,
    "background": Priority.BACKGROUND,
}

MAX_SEED = 2**32 - 1
MAX_NUM_IMAGES = 16


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
