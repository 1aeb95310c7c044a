"""Which timesteps, which adapter: what is read from words and numbers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.adopt.schedule import student_timesteps
from engines.runtime.modules import Lora
from engines.spec import ScheduleSpec


def test_steps_end_equal_parts_of_the_schedule() -> None:
    found = student_timesteps(ScheduleSpec())
    assert found == {1: (999,), 2: (999, 499), 3: (999, 666, 332), 4: (999, 749, 499, 249)}


def test_fewer_steps_visit_some_of_the_named_timesteps() -> None:
    assert student_timesteps(ScheduleSpec(), (899, 699, 499, 299, 99)) == {
        1: (899,),
        2: (899, 499),
        3: (899, 699, 299),
        4: (899, 699, 499, 299),
        5: (899, 699, 499, 299, 99),
    }


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a/lora", "a/lora", 1.0),
        ("a/lora.safetensors:0.8", "a/lora.safetensors", 0.8),
        ("a/lora:-1", "a/lora", -1.0),
        ("a:b/lora", "a:b/lora", 1.0),
    ],
)
def test_an_adapter_is_a_path_and_a_scale(text: str, path: str, scale: float) -> None:
    assert Lora.parse(text) == Lora(Path(path), scale)


def test_a_path_that_has_a_colon_is_found_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "lora:2"
    odd.mkdir()
    assert Lora.parse(str(odd)) == Lora(odd, 1.0)
