"""Every wrong request is refused with the field and what is allowed; right ones lose nothing."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fixtures import SIZE_PX, make_limits

from engines.noise import MAX_SEED as NOISE_MAX_SEED
from service.errors import InvalidRequest
from service.realtime_wire import read_wish
from service.schemas import MAX_SEED, GenerateRequest, parse_generation

LIMITS = make_limits()
BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": " \t\n "}),
    ("prompt", {"prompt": "x" * 61}),
    ("prompt", {"prompt": "a b c d e f g"}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": 7}),
    ("prompt", {"prompt": ["a"]}),
    ("model", {"model": "other"}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": MAX_SEED + 1}),
    ("seed", {"seed": 10**400}),
    ("seed", {"seed": "1"}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": True}),
    ("width", {"width": 17}),
    ("width", {"width": 0}),
    ("width", {"width": 17, "height": SIZE_PX}),
    ("height", {"height": 17}),
    ("height", {"width": SIZE_PX, "height": 32}),
    ("steps", {"steps": 0}),
    ("steps", {"steps": 5}),
    ("num_images", {"num_images": 0}),
    ("num_images", {"num_images": 17}),
    ("format", {"format": "gif"}),
    ("format", {"format": None}),
    ("colour", {"colour": "red"}),
    ("x" * 64, {"x" * 500: 1}),
]


def _dumps(body: object) -> bytes:
    # orjson refuses the huge integers that a client may well send.
    return json.dumps(body).encode()


@pytest.mark.parametrize(("field", "change"), BAD_FIELDS)
def test_a_bad_field_is_named_with_what_is_allowed(field: str, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_generation(_dumps({"prompt": "a heart"} | change), LIMITS)
    assert caught.value.field == field
    assert caught.value.allowed
    orjson.dumps(caught.value.allowed)


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest, match="prompt is required") as caught:
        parse_generation(b"{}", LIMITS)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 5000]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body"):
        parse_generation(body, LIMITS)


def test_an_unknown_field_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_generation(b'{"prompt": "a", "sed": 1}', LIMITS)
    assert caught.value.allowed == list(GenerateRequest.model_fields)


def test_the_prompt_never_appears_in_an_error() -> None:
    for change in ({"prompt": "canary " * 20}, {"prompt": ["canary"]}, {"seed": -1}):
        body = _dumps({"prompt": "canary"} | change)
        with pytest.raises(InvalidRequest) as caught:
            parse_generation(body, LIMITS)
        assert "canary" not in caught.value.detail


def test_tokens_are_not_counted_for_a_prompt_with_too_many_characters() -> None:
    def never(prompt: str) -> int:
        raise AssertionError("counted")

    with pytest.raises(InvalidRequest, match="characters"):
        parse_generation(_dumps({"prompt": "x" * 61}), make_limits(count_tokens=never))


def test_defaults() -> None:
    generation = parse_generation(b'{"prompt": "a heart"}', LIMITS)
    assert (generation.key.width, generation.key.height) == LIMITS.sizes_px[0]
    assert generation.key.steps == 1
    assert generation.format == "png"
    assert not generation.is_format_given
    assert len(generation.seeds) == 1


def test_one_side_of_a_size_finds_the_other() -> None:
    key = parse_generation(b'{"prompt": "a", "width": 32}', LIMITS).key
    assert (key.width, key.height) == (32, SIZE_PX)


def test_a_missing_seed_is_drawn_anew() -> None:
    seeds = {parse_generation(b'{"prompt": "a"}', LIMITS).seeds[0] for _ in range(20)}
    assert len(seeds) > 1


def test_the_largest_seed_is_the_noise_generators() -> None:
    assert MAX_SEED == NOISE_MAX_SEED


@given(seed=st.integers(0, MAX_SEED), num_images=st.integers(1, 16))
def test_seeds_count_up_and_wrap(seed: int, num_images: int) -> None:
    body = _dumps({"prompt": "a", "seed": seed, "num_images": num_images})
    seeds = parse_generation(body, LIMITS).seeds
    assert len(set(seeds)) == num_images
    assert seeds[0] == seed
    assert all(0 <= value <= MAX_SEED for value in seeds)
    assert all((b - a) % (MAX_SEED + 1) == 1 for a, b in itertools.pairwise(seeds))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from([*GenerateRequest.model_fields, "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=9) | JSON)
def test_any_json_is_either_drawn_or_refused(body: Any) -> None:
    try:
        generation = parse_generation(_dumps(body), LIMITS)
    except InvalidRequest:
        return
    assert (generation.key.width, generation.key.height) in LIMITS.sizes_px
    assert 1 <= generation.key.steps <= LIMITS.max_steps
    assert generation.prompt.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_either_drawn_or_refused(body: bytes) -> None:
    try:
        parse_generation(body, LIMITS)
    except InvalidRequest:
        pass


@pytest.mark.parametrize("char", [*"\x00\x08\x0b\x1b\x7f"])
def test_control_characters_are_refused_in_a_prompt(char: str) -> None:
    body = orjson.dumps({"prompt": f"a{char}b"})
    with pytest.raises(InvalidRequest, match="control") as caught:
        parse_generation(body, make_limits())
    assert caught.value.field == "prompt"


def test_a_prompt_may_have_lines_and_tabs() -> None:
    prompt = "a\tred\r\nheart"
    assert parse_generation(orjson.dumps({"prompt": prompt}), make_limits()).prompt == prompt


@pytest.mark.parametrize("item", [b"[]", b"1", b"{}", b'"a"'])
def test_very_many_values_are_refused_before_they_are_parsed(item: bytes) -> None:
    few, many = (b'{"prompt": [%b]}' % b",".join([item] * num) for num in (1000, 5000))
    for body, field in ((few, "prompt"), (many, None)):
        with pytest.raises(InvalidRequest) as caught:
            parse_generation(body, make_limits())
        assert caught.value.field == field


def test_a_long_text_is_not_many_values() -> None:
    body = b'{"prompt": "a", "image": "data:image/png;base64,%b"}' % (b"A" * 2**20)
    assert parse_generation(body, make_limits()).prompt == "a"


def test_a_message_of_very_many_values_is_refused_too() -> None:
    with pytest.raises(InvalidRequest, match="too many"):
        read_wish(orjson.dumps({"prompt": "a", "x": [[]] * 5000}).decode(), seed=1)
