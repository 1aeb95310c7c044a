"""The measurement of Redis lets real pictures through the real queue, and counts what they cost."""

from __future__ import annotations

import pytest

from tests.bench.capacity.redis_rate import Shape, lines, measure


async def test_every_picture_costs_its_scripts_and_its_bytes() -> None:
    shape = Shape(num_open=16, num_workers=2, num_owners=4, picture_bytes=20_000)
    found = await measure(shape, duration_s=1.0)
    assert found["num_pictures"] > 20
    scripts = found["commands"]["evalsha"]["per_picture"]
    assert 2 < scripts < 5, "one to put, one to finish, a share of what was taken"
    # A few that were under way at either end are counted on one side only.
    assert found["in_bytes_per_picture"] == pytest.approx(21_000, rel=0.25)
    assert found["out_bytes_per_picture"] == pytest.approx(21_000, rel=0.25)
    assert found["pictures_per_core_s"] > found["pictures_per_s"] * 0.9
    assert any("evalsha" in line for line in lines(found))
