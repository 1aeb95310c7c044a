"""Alarms: what raises one, what does not, and that a resumed run raises the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.config import AlarmConfig
from distill.training.alarms import Alarm, Alarms

_CONFIG = AlarmConfig(accuracy_iterations=3, spike_window=8, num_spikes=2, spike_factor=5.0)


def _watch(alarms: Alarms, name: str, values: list[float]) -> list[tuple[str, int]]:
    found: list[Alarm] = []
    for i, value in enumerate(values):
        found += alarms.observe(i, {name: value})
    return [(alarm.name, alarm.iteration) for alarm in found]


def test_a_discriminator_that_is_always_right_raises_an_alarm_each_time_anew() -> None:
    assert _watch(Alarms(_CONFIG), "d_accuracy", [0.96] * 7) == [("accuracy", 2), ("accuracy", 5)]


def test_a_discriminator_that_errs_in_between_does_not() -> None:
    values = [0.99, 0.99, 0.95, 0.99, 0.99, 0.5]
    assert not _watch(Alarms(_CONFIG), "d_accuracy", values)


def test_spikes_are_counted_against_the_median() -> None:
    # The second of two spikes within the window; the norm may grow slowly without any.
    assert _watch(Alarms(_CONFIG), "grad_norm", [1, 1, 1, 1, 6, 1, 6]) == [("spike", 6)]
    assert not _watch(Alarms(_CONFIG), "grad_norm", [1.2**i for i in range(40)])
    assert not _watch(Alarms(_CONFIG), "grad_norm", [1, 1, 1, 1, 4.9, 1, 4.9])


def test_spikes_far_apart_are_no_alarm() -> None:
    values = [1.0] * 40
    values[10] = values[30] = 9.0
    assert not _watch(Alarms(_CONFIG), "grad_norm", values)


def test_the_first_norms_are_no_spikes() -> None:
    config = replace(_CONFIG, spike_window=40, num_spikes=1)
    assert not _watch(Alarms(config), "grad_norm", [0.001, *[1.0] * 9])


def test_diversity_that_falls_and_stays_low_raises_an_alarm() -> None:
    alarms = Alarms(AlarmConfig(diversity_fraction=0.5, diversity_action="abort"))
    found = [alarms.observe_diversity(i, v) for i, v in enumerate([1.0, 2.0, 0.9, 1.1, 0.9])]
    assert not any(found)  # low once, and again after a recovery
    (alarm,) = alarms.observe_diversity(5, 0.8)
    assert (alarm.name, alarm.iteration, alarm.action) == ("diversity", 5, "abort")
    assert "differ by 0.8, less than 50% of the 2 " in alarm.words


def test_it_is_quiet_only_without_a_ground_for_alarm() -> None:
    alarms = Alarms(_CONFIG)
    assert alarms.is_quiet
    alarms.observe(1, {"d_accuracy": 0.99})
    assert not alarms.is_quiet
    alarms.observe(2, {"d_accuracy": 0.9})
    assert alarms.is_quiet
    alarms.observe_diversity(2, 1.0)
    alarms.observe_diversity(3, 0.1)
    assert not alarms.is_quiet


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_resumed_run_raises_the_same_alarms(cut: int) -> None:
    def observe(alarms: Alarms, i: int) -> list[Alarm]:
        metrics = {"d_accuracy": 0.99, "grad_norm": 9.0 if i in (6, 8) else 1.0}
        return alarms.observe(i, metrics) + alarms.observe_diversity(i, 0.1 if i > 4 else 1.0)

    straight = Alarms(_CONFIG)
    expected = [observe(straight, i) for i in range(12)]
    assert sum(map(len, expected)) >= 8
    first = Alarms(_CONFIG)
    found = [observe(first, i) for i in range(cut)]
    second = Alarms(_CONFIG)
    second.load_state_dict(first.state_dict())
    found += [observe(second, i) for i in range(cut, 12)]
    assert found == expected
