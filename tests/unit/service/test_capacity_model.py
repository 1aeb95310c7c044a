"""The capacity model agrees with a simulation that uses the service's own choice of jobs."""

from __future__ import annotations

import pytest

from tests.bench.capacity.check import QUANTILES, Compared, compare, lines
from tests.bench.capacity.load import EngineTime, OfferedLoad
from tests.bench.capacity.model import Overloaded, steady
from tests.bench.capacity.plan import OutOfReach, Promise, plan
from tests.bench.capacity.simulation import simulate

ENGINE = EngineTime(fixed_s=0.002, per_image_s=0.003, max_batch_size=8)
# What docs/capacity.md says of the model.
ONE_ENGINE, SEVERAL_ENGINES = 0.05, 0.17


def compared(num_jobs: int, num_engines: int, share: float) -> Compared:
    return next(iter(compare(num_jobs, [ENGINE], [num_engines], [share])))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_one_engine_is_as_simulated(share: float) -> None:
    row = compared(60_000, 1, share)
    for quantile in QUANTILES:
        assert abs(row.latency_error(quantile)) < ONE_ENGINE, quantile
    assert abs(row.batch_error) < 0.02
    assert abs(row.utilisation_error) < 0.01


@pytest.mark.parametrize(("num_engines", "share"), [(2, 0.9), (4, 0.85), (16, 0.5)])
def test_several_engines_are_nearly_as_simulated(num_engines: int, share: float) -> None:
    row = compared(60_000, num_engines, share)
    for quantile in (0.95, 0.99):
        assert abs(row.latency_error(quantile)) < SEVERAL_ENGINES, quantile
    assert abs(row.utilisation_error) < 0.05
    assert any("p99" in line for line in lines([row]))


def test_a_single_picture_at_a_time_is_the_textbooks_queue() -> None:
    """M/D/1: the mean wait is ρ / (2 (1 - ρ)) runs. Source: Pollaczek and Khinchine."""
    engine = EngineTime(fixed_s=0.0, per_image_s=0.010, max_batch_size=1)
    found = steady(engine, OfferedLoad(70.0))
    shares = found.shares.copy()
    shares[1:] -= found.shares[:-1]
    mean_wait_s = float(found.latencies_s @ shares) - 0.010
    assert mean_wait_s == pytest.approx(0.010 * 0.7 / (2 * 0.3), rel=0.01)
    assert found.utilisation == pytest.approx(0.7)
    assert found.mean_batch_size == 1


def test_nobody_waits_where_nobody_else_asks() -> None:
    found = steady(ENGINE, OfferedLoad(0.01, num_engines=3))
    assert found.latency_s(0.99) == pytest.approx(0.005)
    assert found.mean_batch_size == pytest.approx(1.0, abs=1e-3)


def test_more_than_the_engines_can_draw_has_no_long_run() -> None:
    with pytest.raises(Overloaded, match="than full batches can draw"):
        steady(ENGINE, OfferedLoad(2 * ENGINE.images_per_s + 1, num_engines=2))
    with pytest.raises(Overloaded, match="40 full batches"):
        steady(ENGINE, OfferedLoad(0.9999 * ENGINE.images_per_s))


def test_the_plan_is_the_least_that_keeps_the_promise() -> None:
    promise = Promise(quantile=0.99, within_s=0.060, besides_s=0.005)
    found = plan(ENGINE, 1000.0, promise, num_spare=1, price_per_hour=3.6)
    num = found.offered.num_engines
    assert found.steady.latency_s(0.99) <= 0.055
    with pytest.raises(Overloaded):
        steady(ENGINE, OfferedLoad(1000.0, num - 1))
    tighter = plan(ENGINE, 1000.0, Promise(0.99, within_s=0.030, besides_s=0.005))
    fewer = steady(ENGINE, OfferedLoad(1000.0, tighter.offered.num_engines - 1))
    assert tighter.steady.latency_s(0.99) <= 0.025 < fewer.latency_s(0.99)
    assert found.num_replicas == num + 1
    assert found.cost_per_hour == pytest.approx(3.6 * (num + 1))
    assert found.cost_per_thousand == pytest.approx((num + 1) / 1000)
    measured = simulate(ENGINE, found.offered, 20_000, seed=2)
    assert measured.latency_s(0.99) < 0.055 * (1 + SEVERAL_ENGINES)


def test_a_promise_that_no_engine_keeps_is_refused() -> None:
    with pytest.raises(OutOfReach, match="alone"):
        plan(ENGINE, 1.0, Promise(0.99, within_s=0.008, besides_s=0.004))
    with pytest.raises(OutOfReach, match="split"):
        plan(ENGINE, 400_000.0, Promise(0.99, within_s=0.060))
