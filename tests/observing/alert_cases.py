"""What makes each alert fire and what must not, as series of one minute's steps.

Owns the table; `test_alert_rules` hands it to promtool. Values are in its notation: `0+6x120` grows
by 6 for 120 minutes, `7x9` stays.
"""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]

_OK = 'onestep_requests_total{route="/v1/generate",code="200",reason="ok"}'
_BAD = 'onestep_requests_total{route="/v1/generate",code="500",reason="generation_failed"}'
_FULL = 'onestep_requests_total{route="/v1/generate",code="429",reason="queue_full"}'
_HEALTH_BAD = 'onestep_requests_total{route="/readyz",code="503",reason="not_ready"}'
_QUICK = 'onestep_time_to_first_image_seconds_bucket{le="1.0"}'
_ALL = "onestep_time_to_first_image_seconds_count"
_REFUSED = 'onestep_rejected_total{reason="queue_full"}'
_INVALID = 'onestep_rejected_total{reason="invalid_request"}'
_FAILED = 'onestep_failed_total{reason="engine"}'
_EXPIRED = 'onestep_failed_total{reason="expired"}'
_USED = 'onestep_redis_memory_bytes{kind="used"}'
_MAX = 'onestep_redis_memory_bytes{kind="max"}'
_TWO = ('{instance="a"}', '{instance="b"}')


@dataclass(frozen=True)
class Case:
    """One alert's series.

    Attributes:
        fires: with these it fires `at_min` minutes in.
        calm: with any of these it does not.
    """

    fires: Series
    calm: tuple[Series, ...]
    at_min: int = 10


CASES: dict[str, Case] = {
    "OnestepErrorBudgetBurnsFast": Case(
        {_OK: "0+60x120", _BAD: "0+6x120"},
        (
            # Ten times the budget is not fourteen.
            {_OK: "0+99x120", _BAD: "0+1x120"},
            # It is over.
            {_OK: "0+60x120", _BAD: "0+60x50 3000x70"},
            # One in three, of next to none.
            {_OK: "0+1x120", _BAD: "0+0.5x120"},
            # Only a probe was refused, and clients erred.
            {_OK: "0+60x120", _HEALTH_BAD: "0+60x120", _FULL: "0+60x120"},
        ),
        at_min=80,
    ),
    "OnestepErrorBudgetBurns": Case(
        {_ALL: "0+100x600", _QUICK: "0+92x600"},
        ({_ALL: "0+100x600", _QUICK: "0+95x600"}, {_OK: "0+995x600", _BAD: "0+5x600"}),
        at_min=500,
    ),
    "OnestepErrorBudgetBurnsSlowly": Case(
        {_OK: "0+998x4600", _BAD: "0+2x4600"},
        ({_OK: "0+9995x4600", _BAD: "0+5x4600"},),
        at_min=4500,
    ),
    "OnestepOldestJobIsOld": Case(
        {"onestep_queue_oldest_age_seconds": "9x20"},
        (
            {"onestep_queue_oldest_age_seconds": "3x20"},
            # For a moment only.
            {"onestep_queue_oldest_age_seconds": "0x9 9x1 0x9"},
        ),
    ),
    "OnestepRejectsMany": Case(
        {_OK: "0+80x20", _FULL: "0+20x20", _REFUSED: "0+20x20"},
        (
            {_OK: "0+97x20", _FULL: "0+3x20", _REFUSED: "0+3x20"},
            {_OK: "0+80x20", _INVALID: "0+20x20"},
            {_OK: "0+4x20", _FULL: "0+1x20", _REFUSED: "0+1x20"},
        ),
        at_min=15,
    ),
    "OnestepDeadLetters": Case(
        # As two processes saw it.
        {f"onestep_dead_letter_total{one}": "0x5 1x9" for one in _TWO},
        ({f"onestep_dead_letter_total{one}": "7x14" for one in _TWO},),
        at_min=8,
    ),
    "OnestepRedeliversJobs": Case(
        {"onestep_redelivered_total": "0x5 3x9"}, ({"onestep_redelivered_total": "3x14"},), at_min=8
    ),
    "OnestepQueueIsUnavailable": Case(
        {"onestep_queue_up" + _TWO[0]: "1x20", "onestep_queue_up" + _TWO[1]: "0x20"},
        ({"onestep_queue_up": "1x20"}, {"onestep_queue_up": "1x9 0x1 1x9"}),
    ),
    "OnestepRedisDoesNotPersist": Case(
        {"onestep_redis_persists": "0x20"}, ({"onestep_redis_persists": "1x20"},)
    ),
    "OnestepRedisIsFull": Case(
        {_USED: "80x20", _MAX: "100x20"},
        ({_USED: "60x20", _MAX: "100x20"}, {_USED: "80x20", _MAX: "0x20"}),
    ),
    "OnestepHasNoWorkers": Case(
        {f"onestep_workers{one}": "0x20" for one in _TWO},
        ({f"onestep_workers{_TWO[0]}": "0x20", f"onestep_workers{_TWO[1]}": "1x20"},),
    ),
    "OnestepWorkerIsSilent": Case(
        {"onestep_worker_heartbeat_age_seconds": "18x20"},
        ({"onestep_worker_heartbeat_age_seconds": "4x20"},),
    ),
    "OnestepEngineIsStuck": Case(
        {"onestep_engine_run_age_seconds": "0+60x20"}, ({"onestep_engine_run_age_seconds": "2x20"},)
    ),
    "OnestepEngineFails": Case(
        {"onestep_images_total": "0+98x20", _FAILED: "0+2x20"},
        (
            {"onestep_images_total": "0+999x20", _FAILED: "0+1x20"},
            {"onestep_images_total": "0+98x20", _FAILED: "0x20", _EXPIRED: "0+9x20"},
            {"onestep_images_total": "0+2x20", _FAILED: "0+1x20"},
        ),
        at_min=15,
    ),
    "OnestepRunsOutOfGpuMemory": Case(
        {'onestep_out_of_memory_total{model="m"}': "0x5 1x9"},
        ({'onestep_out_of_memory_total{model="m"}': "1x14"},),
        at_min=8,
    ),
    "OnestepIsNotReady": Case(
        {"onestep_ready" + _TWO[0]: "1x20", "onestep_ready" + _TWO[1]: "0x20"},
        ({"onestep_ready": "1x20"}, {"onestep_ready": "0x3 1x20"}),
    ),
    "OnestepTargetIsDown": Case(
        {'up{job="onestep-worker"}': "0x20"},
        ({'up{job="onestep-worker"}': "1x20"}, {'up{job="dcgm"}': "0x20"}),
    ),
    "OnestepIsAbsent": Case({"up": "1x20"}, ({"onestep_ready": "0x20"},)),
}
