"""What every process does between its start and its end."""

from __future__ import annotations

import gc

from service.processes.life import freeze_what_stays


def test_the_collector_looks_no_more_at_what_was_there() -> None:
    before: list[object] = []
    try:
        freeze_what_stays()
        after: list[object] = []
        seen = {id(one) for one in gc.get_objects()}
        assert id(before) not in seen
        assert id(after) in seen
    finally:
        gc.unfreeze()
