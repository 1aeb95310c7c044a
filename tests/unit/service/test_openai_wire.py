"""OpenAI's fields: what they mean here, what has no effect, what is refused and why."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from service_fixtures import SIZE_PX, make_limits

from service.errors import STATUS_TABLE, InvalidRequest, ProblemError, QueueFull
from service.kept import KeptPicture, KeptPictures
from service.openai_wire.answers import error_document
from service.openai_wire.requests import ImagesRequest, parse_images
from service.schemas import MAX_SEED

LIMITS = make_limits()
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": "x" * 61}),
    ("prompt", {"prompt": "a b c d e f g"}),
    ("prompt", {"prompt": None}),
    ("model", {"model": "dall-e-3"}),
    ("n", {"n": 0}),
    ("n", {"n": 11}),
    ("n", {"n": "2"}),
    ("size", {"size": "17x16"}),
    ("size", {"size": "16x17"}),
    ("size", {"size": "16"}),
    ("size", {"size": "016x016"}),
    ("size", {"size": "16x16\n"}),
    ("size", {"size": "9" * 400 + "x16"}),
    ("response_format", {"response_format": "bytes"}),
    ("response_format", {"response_format": "url", "stream": True}),
    ("output_format", {"output_format": "gif"}),
    ("output_compression", {"output_compression": 101}),
    ("stream", {"stream": "yes"}),
    ("partial_images", {"partial_images": 4}),
    ("background", {"background": "transparent"}),
    ("quality", {"quality": "ultra"}),
    ("style", {"style": "flat"}),
    ("moderation", {"moderation": "none"}),
    ("user", {"user": 7}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": MAX_SEED + 1}),
    ("num_inference_steps", {"num_inference_steps": 0}),
    ("num_inference_steps", {"num_inference_steps": 5}),
    ("guidance_scale", {"guidance_scale": 7.5}),
    ("negative_prompt", {"negative_prompt": "blurry"}),
    ("width", {"width": SIZE_PX}),
    ("true_cfg_scale", {"true_cfg_scale": 1.0}),
]


def _parse(**fields: Any) -> Any:
    return parse_images(orjson.dumps({"prompt": "a red heart"} | fields), LIMITS)


@pytest.mark.parametrize(("field", "fields"), REFUSED)
def test_a_refusal_names_the_field_in_openais_words(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _parse(**fields)
    assert caught.value.field == field
    assert caught.value.detail.startswith(field)
    assert "blurry" not in caught.value.detail


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_a_body_must_be_a_json_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_images(body, LIMITS)


def test_what_is_left_out_has_openais_defaults() -> None:
    asked = _parse()
    assert (asked.is_url, asked.is_stream) == (False, False)
    assert asked.generation.format == "png"
    assert asked.generation.quality is None
    assert len(asked.generation.seeds) == 1
    assert (asked.generation.key.width, asked.generation.key.height) == (SIZE_PX, SIZE_PX)


def test_what_is_given_arrives() -> None:
    asked = _parse(
        n=2,
        size=f"32x{SIZE_PX}",
        seed=7,
        num_inference_steps=3,
        output_format="jpeg",
        output_compression=40,
        response_format="url",
    )
    key = asked.generation.key
    assert asked.generation.seeds == (7, 8)
    assert (key.width, key.height, key.steps) == (32, SIZE_PX, 3)
    assert (asked.generation.format, asked.generation.quality) == ("jpeg", 40)
    assert asked.is_url


def test_null_means_left_out() -> None:
    fields = {name: None for name in ImagesRequest.model_fields if name != "prompt"}
    assert len(_parse(**fields).generation.seeds) == 1


@pytest.mark.parametrize("kind", sorted(STATUS_TABLE, key=lambda kind: kind.__name__))
def test_every_error_has_an_envelope(kind: type[ProblemError]) -> None:
    error = error_document(kind("why", field="seed"))["error"]
    assert (error["message"], error["param"]) == ("why", "seed")
    row = STATUS_TABLE[kind]
    assert error["code"] == row.code
    assert (error["type"] == "server_error") == (row.status >= 500)


def test_a_full_queue_is_a_rate_limit_to_openais_clients() -> None:
    assert error_document(QueueFull("why"))["error"]["type"] == "rate_limit_error"


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_kept_picture_grows_old() -> None:
    clock = _Clock()
    kept = KeptPictures(100, ttl_s=10, clock=clock)
    picture = KeptPicture(b"x" * 10, "image/png")
    name = kept.keep(picture)
    assert name is not None and len(name) >= 32
    assert kept.find(name) == picture
    clock.now_s = 10.1
    assert kept.find(name) is None


def test_kept_pictures_give_way_to_new_ones_within_their_memory() -> None:
    kept = KeptPictures(25, ttl_s=10)
    names = [kept.keep(KeptPicture(b"x" * 10, "image/png")) for _ in range(3)]
    assert [kept.find(str(name)) is not None for name in names] == [False, True, True]
    assert kept.keep(KeptPicture(b"x" * 26, "image/png")) is None
