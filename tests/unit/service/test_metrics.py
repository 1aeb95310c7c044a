"""Metrics: what each process shows, what is there before anything happened, bounded labels."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from service_fixtures import ScriptedPipeline, make_limits

from service.app import create_app
from service.brokers.base import QueueCounts, QueueDepth, StoreHealth
from service.brokers.memory import MemoryBroker
from service.errors import STATUS_TABLE, QueueUnavailable
from service.routes.context import AppContext, Readiness, sweep
from service.settings import load_settings
from service.telemetry import SECONDS_BUCKETS, EngineFacts, FollowedCounter, Telemetry
from service.worker import Worker, WorkerOptions

OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
# What a label may be called; prompt, seed, key, job and request id are not among them.
LABELS = {
    *("route", "code", "reason", "phase", "priority", "stage", "kind", "model", "result"),
    *("answer", "outcome", "backend", "precision", "le"),
}
# Whoever scrapes gives these to a target, and would rename a metric's own (exported_pod, ...).
TARGETS_LABELS = {
    *("job", "instance", "namespace", "service", "endpoint", "pod", "container", "node"),
}


def _names(telemetry: Telemetry) -> set[str]:
    return {metric.name for metric in telemetry.registry.collect()}


def _app(telemetry: Telemetry) -> None:
    limits, settings = make_limits(), load_settings()
    create_app(AppContext(settings, limits, MemoryBroker(10), telemetry, Readiness(telemetry)))


def _worker(telemetry: Telemetry) -> Worker:
    pipeline = ScriptedPipeline()
    return Worker(MemoryBroker(10), {"tiny": lambda: pipeline}, telemetry, WorkerOptions())


def test_an_api_process_shows_no_engine_and_a_worker_no_requests() -> None:
    api, worker, both = Telemetry(is_worker=False), Telemetry(is_api=False), Telemetry()
    shared = _names(api) & _names(worker)
    assert {"onestep_queue_depth", "onestep_ready", "onestep_workers"} <= shared
    assert "onestep_requests" in _names(api) - _names(worker)
    assert "onestep_stage_duration_seconds" in _names(worker) - _names(api)
    store = {"onestep_redis_persists", "onestep_redis_memory_bytes"}
    assert store <= shared
    # All in one, there is no such server.
    assert _names(both) == (_names(api) | _names(worker)) - store


def test_every_name_has_the_prefix_and_every_label_few_values() -> None:
    telemetry = Telemetry()
    _app(telemetry)
    _worker(telemetry)
    text = telemetry.expose("")[0].decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith("onestep_") for line in lines)
    assert set(re.findall(r'[{,](\w+)="', text)) <= LABELS
    assert not LABELS & TARGETS_LABELS
    assert len(lines) < 1500


def test_every_refusal_of_a_drawing_route_is_there_before_the_first() -> None:
    telemetry = Telemetry()
    _app(telemetry)
    value = telemetry.registry.get_sample_value
    for row in STATUS_TABLE.values():
        labels = {"route": "/v1/generate", "code": str(row.status), "reason": row.code}
        assert value("onestep_requests_total", labels) == 0
        assert value("onestep_rejected_total", {"reason": row.code}) == 0
    assert value("onestep_cancelled_total", {"phase": "queued"}) == 0
    assert value("onestep_realtime_messages_total", {"outcome": "drawn"}) == 0
    for route in ("/v1/images/edits", "/readyz", "/v1/models"):
        assert value("onestep_request_duration_seconds_count", {"route": route}) == 0


def test_a_worker_begins_all_its_series_at_0() -> None:
    telemetry = Telemetry(is_api=False)
    _worker(telemetry)
    value = telemetry.registry.get_sample_value
    for name, labels in (
        ("batch_close_total", {"reason": "deadline"}),
        ("failed_total", {"reason": "engine"}),
        ("cancelled_total", {"phase": "running"}),
        ("queue_wait_seconds_count", {"priority": "background"}),
        ("stage_duration_seconds_count", {"stage": "encode_input"}),
        ("engine_run_age_seconds", {}),
        ("engine_busy_seconds_total", {}),
    ):
        assert value(f"onestep_{name}", labels) == 0, name


def test_buckets_are_dense_where_a_picture_falls() -> None:
    assert SECONDS_BUCKETS[0] == 0.001
    within = [edge for edge in SECONDS_BUCKETS if edge <= 1]
    assert all(b / a <= 1.67 for a, b in itertools.pairwise(within))


def test_a_followed_counter_shows_growth_and_survives_a_queue_that_began_anew() -> None:
    registry = CollectorRegistry()
    followed = FollowedCounter(Counter("ended_total", "", registry=registry))
    shown = []
    for total in (700, 700, 703, 2, 5):
        followed.reach(total)
        shown.append(registry.get_sample_value("ended_total"))
    assert shown == [0, 0, 3, 5, 8]


class _Queue(MemoryBroker):
    """A queue that tells what it is told to."""

    depth: QueueDepth | None = None
    # It tells that even when it refuses to change anything.
    store = StoreHealth(5, 8, False)

    async def sweep(self) -> QueueDepth:
        if self.depth is None:
            raise QueueUnavailable("away")
        return self.depth


def test_a_process_that_has_not_looked_yet_accuses_nobody() -> None:
    # Its model may load for minutes, and an alert waits for a 0.
    telemetry = Telemetry(is_api=False)
    value = telemetry.registry.get_sample_value
    assert value("onestep_queue_up") == value("onestep_redis_persists") == 1


async def test_a_sweep_shows_workers_counts_and_the_server() -> None:
    telemetry, queue = Telemetry(is_worker=False), _Queue(10)
    value = telemetry.registry.get_sample_value
    with pytest.raises(QueueUnavailable):
        await sweep(queue, telemetry)
    assert value("onestep_redis_persists") == 0
    assert value("onestep_redis_memory_bytes", {"kind": "max"}) == 8
    queue.depth = QueueDepth(3, 1.5, 0, 2, 0.25, QueueCounts(9, 9, 9))
    await sweep(queue, telemetry)
    queue.depth = QueueDepth(3, 1.5, 0, 2, 0.25, QueueCounts(10, 11, 12))
    await sweep(queue, telemetry)
    assert [value(f"onestep_{name}_total") for name in ("redelivered", "dead_letter", "late")] == [
        1,
        2,
        3,
    ]
    assert value("onestep_workers") == 2
    assert value("onestep_worker_heartbeat_age_seconds") == 0.25
    assert value("onestep_queue_up") == 1
    queue.depth = None
    with pytest.raises(QueueUnavailable):
        await sweep(queue, telemetry)
    assert value("onestep_queue_up") == 0


def test_an_engine_tells_of_itself_at_each_scrape() -> None:
    telemetry = Telemetry(is_api=False)
    counts = [(1, 2), (4, 2)]
    memory: list[tuple[int, int] | None] = [None, (30, 80)]
    telemetry.engines.note(
        EngineFacts(
            *("tiny", "onnx", "float32"),
            prompt_counts=lambda: counts.pop(0),
            num_out_of_memory=lambda: 7,
            row_counts=lambda: (5, 3),
            memory_bytes=lambda: memory.pop(0),
        )
    )
    first, second = telemetry.expose("")[0].decode(), telemetry.expose("")[0].decode()
    assert 'onestep_engine_info{backend="onnx",model="tiny",precision="float32"} 1.0' in first
    assert 'onestep_prompt_cache_total{model="tiny",result="hit"} 1.0' in first
    assert 'onestep_prompt_cache_total{model="tiny",result="hit"} 4.0' in second
    assert 'onestep_out_of_memory_total{model="tiny"} 7.0' in second
    assert 'onestep_batch_rows_total{kind="picture",model="tiny"} 5.0' in first
    assert 'onestep_batch_rows_total{kind="padding",model="tiny"} 3.0' in first
    assert "onestep_gpu_memory_bytes{" not in first
    assert 'onestep_gpu_memory_bytes{kind="used"} 30.0' in second


def test_the_table_of_metrics_names_every_one(repo_root: Path) -> None:
    page = (repo_root / "docs" / "observability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `onestep_")]
    named = set(re.findall(r"`(onestep_[a-z_*]+)", "\n".join(row.split(" | ")[0] for row in rows)))
    telemetry = [Telemetry(is_worker=False), Telemetry(is_api=False)]
    shown = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for one in telemetry
        for metric in one.registry.collect()
    }
    families = {one.removesuffix("*") for one in named if one.endswith("*")}
    assert {one for one in shown if not one.startswith(tuple(families))} == named - {
        f"{one}*" for one in families
    }


def test_exemplars_come_with_openmetrics_only() -> None:
    telemetry = Telemetry()
    telemetry.first_image.observe(0.02, exemplar={"trace_id": "0af7"})
    plain, plain_type = telemetry.expose("text/plain")
    rich, rich_type = telemetry.expose(OPEN_METRICS)
    assert plain_type.startswith("text/plain") and b"0af7" not in plain
    assert rich_type.startswith("application/openmetrics-text") and b'trace_id="0af7"' in rich
    assert b"_created" not in rich and rich.endswith(b"# EOF\n")
