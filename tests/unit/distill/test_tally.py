"""Means between reports, and skipped iterations."""

from __future__ import annotations

import math

from distill.training.tally import Tally


def test_a_report_is_the_mean_since_the_one_before() -> None:
    tally = Tally()
    tally.add({"loss": 1.0, "skipped": 0.0})
    tally.add({"loss": 3.0})
    tally.note({"diversity": 5.0})
    assert tally.report() == {"loss": 2.0, "diversity": 5.0, "num_skipped": 0.0}
    tally.add({"loss": 7.0})
    assert tally.report() == {"loss": 7.0, "num_skipped": 0.0}


def test_skipped_iterations_are_counted_and_have_no_say() -> None:
    tally = Tally()
    for skipped in (1.0, 0.0, 2.0, 1.0):  # 2: both phases of a distillation
        tally.add({"loss": math.nan if skipped else 4.0, "skipped": skipped})
    assert tally.num_skipped_in_a_row == 2
    assert tally.report() == {"loss": 4.0, "num_skipped": 3.0}
    assert tally.report() == {"num_skipped": 3.0}


def test_a_value_that_is_not_finite_is_left_out() -> None:
    tally = Tally()
    tally.add({"loss": 1.0, "r1": math.inf})
    tally.add({"loss": math.nan, "r1": 2.0})
    assert tally.report() == {"loss": 1.0, "r1": 2.0, "num_skipped": 0.0}


def test_a_resumed_tally_reports_the_same() -> None:
    straight = Tally()
    for loss in (1.0, 2.0):
        straight.add({"loss": loss})
    straight.add({"skipped": 1.0})
    again = Tally()
    again.load_state_dict(straight.state_dict())
    for tally in (straight, again):
        tally.add({"skipped": 1.0})
        assert tally.num_skipped_in_a_row == 2
        tally.add({"loss": 9.0})
    assert straight.report() == again.report() == {"loss": 4.0, "num_skipped": 2.0}
