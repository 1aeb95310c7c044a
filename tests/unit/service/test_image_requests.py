"""Requests with a picture: JSON, forms and OpenAI's edits, and how strength becomes a batch key."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from engines_fixtures import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from service_fixtures import SIZE_PX, make_limits

from engines.sampling import plan_steps
from service.errors import InvalidRequest
from service.openai_wire.edits import parse_edits
from service.schemas import Generation, parse_generation, parse_generation_form

LIMITS = make_limits()
TEXT_ALONE = make_limits(can_start_from_image=False)
PICTURE = b"whatever: it is looked into elsewhere"
BASE64 = base64.b64encode(PICTURE).decode()


def _parse(limits: Any = LIMITS, **fields: Any) -> Generation:
    return parse_generation(orjson.dumps({"prompt": "a heart"} | fields), limits)


@pytest.mark.parametrize("text", [BASE64, f"data:image/png;base64,{BASE64}"])
def test_a_picture_in_json(text: str) -> None:
    generation = _parse(image=text, mask=text, strength=0.75)
    assert (generation.image, generation.mask) == (PICTURE, PICTURE)
    assert generation.key.strength == pytest.approx(0.75, abs=0.001)


@pytest.mark.parametrize(
    ("field", "fields", "remedy"),
    [
        ("strength", {"strength": 0.5}, "add image"),
        ("mask", {"mask": BASE64}, "add image"),
        ("strength", {"image": BASE64, "strength": 0}, "greater than 0"),
        ("strength", {"image": BASE64, "strength": 1.01}, "less than or equal to 1"),
        ("strength", {"image": BASE64, "strength": "0.5"}, "number"),
        ("strength", {"image": BASE64, "strength": True}, "number"),
        ("image", {"image": "https://example.org/heart.png"}, "addresses are not fetched"),
        ("image", {"image": "data:image/png,abc"}, "base64"),
        ("image", {"image": "not base64!"}, "base64"),
        ("image", {"image": "AAAA\nAAAA"}, "line breaks"),
        ("image", {"image": "AAA"}, "base64"),
        ("image", {"image": "\u00e4\u00e4\u00e4\u00e4"}, "base64"),
        ("image", {"image": 7}, "base64"),
        ("mask", {"image": BASE64, "mask": "?"}, "base64"),
        ("steps", {"image": BASE64, "steps": 3}, "1 to 2 at strength 0.5"),
        ("steps", {"image": BASE64, "steps": 2, "strength": 0.1}, "1 to 1 at strength 0.1"),
        ("steps", {"image": BASE64, "steps": 5, "strength": 1}, "1 to 4"),
    ],
)
def test_a_refusal_names_field_and_remedy(field: str, fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidRequest, match=remedy) as caught:
        _parse(**fields)
    assert caught.value.field == field
    assert caught.value.allowed


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-1", b"1e400"])
def test_strength_must_be_a_number_in_range(number: bytes) -> None:
    body = b'{"prompt": "a", "image": "AAAA", "strength": ' + number + b"}"
    with pytest.raises(InvalidRequest) as caught:
        parse_generation(body, LIMITS)
    assert caught.value.field in ("strength", None)


def test_a_model_that_draws_from_text_alone_says_so() -> None:
    with pytest.raises(InvalidRequest, match="tiny draws from text alone") as caught:
        _parse(TEXT_ALONE, image=BASE64)
    assert caught.value.field == "image"
    assert _parse(TEXT_ALONE).key.strength is None
    assert TEXT_ALONE.strengths == ()


@given(
    strength=st.floats(0, 1, exclude_min=True),
    steps=st.integers(1, 4),
    timesteps=st.lists(st.integers(0, 999), min_size=4, max_size=4, unique=True),
)
def test_strengths_are_chosen_as_the_engine_chooses(
    strength: float, steps: int, timesteps: list[int]
) -> None:
    trained = tuple(sorted(timesteps, reverse=True))
    spec = tiny_spec()
    every = spec.student_timesteps | {spec.max_steps: trained}
    spec = spec.model_copy(update={"student_timesteps": every})
    limits = make_limits(timesteps=trained)
    size_px = spec.sizes_px[0]
    try:
        key = _parse(limits, image=BASE64, strength=strength, steps=steps).key
    except InvalidRequest as refusal:
        assert refusal.field == "steps"
        with pytest.raises(ValueError, match=r"steps must be in 1\.\."):
            plan_steps(spec, size_px, steps, strength)
    else:
        assert key.strength in limits.strengths
        assert plan_steps(spec, size_px, steps, key.strength) == plan_steps(
            spec, size_px, steps, strength
        )


def test_a_form_says_the_same_as_json() -> None:
    texts = {
        "prompt": "a heart",
        "seed": "7",
        "width": str(SIZE_PX),
        "steps": "2",
        "num_images": "3",
        "format": "jpeg",
        "quality": "80",
        "strength": "0.5",
    }
    numbers = {"seed": 7, "width": SIZE_PX, "steps": 2, "num_images": 3, "quality": 80}
    fields = numbers | {"format": "jpeg", "strength": 0.5, "image": BASE64}
    assert parse_generation_form(texts, {"image": PICTURE}, LIMITS) == _parse(**fields)


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("prompt", {}),
        ("seed", {"seed": "seven"}),
        ("seed", {"seed": "1.5"}),
        ("seed", {"seed": "-1"}),
        ("steps", {"steps": ""}),
        ("num_images", {"num_images": "17"}),
        ("strength", {"strength": "half"}),
        ("strength", {"strength": "nan"}),
        ("format", {"format": "gif"}),
        ("colour", {"colour": "red"}),
    ],
)
def test_a_wrong_text_in_a_form_is_named(field: str, texts: dict[str, str]) -> None:
    prompt = {} if field == "prompt" else {"prompt": "a secret heart"}
    with pytest.raises(InvalidRequest) as caught:
        parse_generation_form(prompt | texts, {"image": PICTURE}, LIMITS)
    assert caught.value.field == field
    assert "secret" not in caught.value.detail


def _edit(files: Any = None, **texts: str) -> Any:
    files = {"image": [PICTURE]} if files is None else files
    return parse_edits({"prompt": "a heart"} | texts, files, LIMITS)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit(name: str) -> None:
    texts = {"n": "2", "size": f"{SIZE_PX}x{SIZE_PX}", "stream": "true", "seed": "7"}
    asked = _edit({name: [PICTURE], "mask": [b"mask"]}, **texts)
    assert (asked.generation.image, asked.generation.mask) == (PICTURE, b"mask")
    assert asked.generation.seeds == (7, 8)
    assert (asked.is_stream, asked.completed_event) == (True, "image_edit.completed")


@pytest.mark.parametrize(
    ("texts", "strength"),
    [
        ({}, 0.5),
        ({"strength": "1"}, 1.0),
        ({"input_fidelity": "low"}, 0.5),
        ({"input_fidelity": "high"}, 0.25),
    ],
)
def test_fidelity_is_a_strength_by_name(texts: dict[str, str], strength: float) -> None:
    assert _edit(**texts).generation.key.strength == pytest.approx(strength, abs=0.001)


@pytest.mark.parametrize(
    ("field", "files", "texts", "remedy"),
    [
        ("image", {}, {}, "required"),
        ("image", {"image[]": [b"a", b"b"]}, {}, "2 came"),
        ("image", {"image": [b"a"], "image[]": [b"b"]}, {}, "2 came"),
        ("mask", {"image": [b"a"], "mask": [b"b", b"c"]}, {}, "2 came"),
        ("strength", None, {"strength": "0"}, "greater than 0"),
        ("input_fidelity", None, {"input_fidelity": "medium"}, "high"),
        ("input_fidelity", None, {"input_fidelity": "low", "strength": "1"}, "one of them"),
        ("num_inference_steps", None, {"num_inference_steps": "3"}, "1 to 2"),
        ("size", None, {"size": "7x7"}, f"{SIZE_PX}x{SIZE_PX}"),
        ("background", None, {"background": "transparent"}, "opaque"),
        ("n", None, {"n": "11"}, "10"),
        ("moderation", None, {"moderation": "low"}, "no field"),
    ],
)
def test_an_edit_refused(field: str, files: Any, texts: dict[str, str], remedy: str) -> None:
    with pytest.raises(InvalidRequest, match=remedy) as caught:
        _edit(files, **texts)
    assert caught.value.field == field
    assert caught.value.detail.startswith(field)
