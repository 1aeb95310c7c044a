"""Spans: what they are called, how they hang together, and when there are none."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service_fixtures import make_job

from service.brokers.codec import job_from_bytes, job_to_bytes
from service.errors import StartError
from service.telemetry import BatchRun, Traces, exemplar_of

SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_KEPT = SENT[:-2] + "00"


class _Kept:
    def __init__(self, sample_ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._exporter)
        self.traces = Traces.handed_to([processor], "onestep", sample_ratio)

    def by_name(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


def _run(*members: tuple[str, float]) -> BatchRun:
    return BatchRun(members, 0.030, {"text": 5.0, "denoise": 20.0}, {"onestep.batch_size": 2})


def test_a_request_goes_on_the_senders_trace_and_names_its_own_place() -> None:
    kept = _Kept()
    span = kept.traces.request("POST", SENT)
    span.end("/v1/generate", 500, "generation_failed")
    assert span.traceparent[3:35] == SENT[3:35]
    assert span.traceparent != SENT and exemplar_of(span.traceparent) == {"trace_id": SENT[3:35]}
    told = kept.by_name()["http POST"]
    assert told.parent is not None and f"{told.parent.span_id:016x}" == SENT[36:52]
    assert dict(told.attributes or {})["http.route"] == "/v1/generate"
    assert not told.status.is_ok


@pytest.mark.parametrize("sent", ["", "rubbish", SENT.replace("0af7", "zzzz"), "00-" + "0" * 80])
def test_what_is_no_traceparent_begins_a_new_trace(sent: str) -> None:
    kept = _Kept()
    span = kept.traces.request("POST", sent)
    span.end("/v1/generate", 200, "ok")
    assert kept.by_name()["http POST"].parent is None
    assert exemplar_of(span.traceparent) is not None


def test_a_batch_is_linked_to_all_its_requests_and_its_stages_follow_each_other() -> None:
    kept = _Kept()
    one, other = (kept.traces.request("POST", "") for _ in range(2))
    kept.traces.batch(_run((one.traceparent, 0.010), ("", 0.5), (other.traceparent, 0.002)))
    spans = kept.by_name()
    batch = spans["batch"]
    assert {link.context.span_id for link in batch.links} == {
        int(request.traceparent[36:52], 16) for request in (one, other)
    }
    assert batch.parent is not None
    assert f"{batch.parent.span_id:016x}" == one.traceparent[36:52]
    text, denoise = spans["text"], spans["denoise"]
    assert text.parent == denoise.parent == batch.context
    assert (text.start_time, text.end_time) == (batch.start_time, denoise.start_time)
    assert denoise.end_time is not None and denoise.start_time is not None
    assert denoise.end_time - denoise.start_time == 20_000_000
    # The last one told is the other's.
    queue = spans["queue"]
    assert queue.end_time == batch.start_time
    assert queue.end_time is not None and queue.start_time is not None
    assert queue.end_time - queue.start_time == 2_000_000


def test_what_is_not_kept_leaves_no_span_and_no_exemplar() -> None:
    kept = _Kept(sample_ratio=0.0)
    span = kept.traces.request("POST", "")
    span.end("/v1/generate", 200, "ok")
    kept.traces.batch(_run((span.traceparent, 0.01), (NOT_KEPT, 0.01), ("", 0.01)))
    kept.traces.encoded(NOT_KEPT, 0.01)
    kept.traces.encoded("", 0.01)
    assert kept.by_name() == {}
    assert exemplar_of(span.traceparent) is exemplar_of(NOT_KEPT) is exemplar_of("") is None


def test_a_job_carries_its_place_and_one_of_an_older_version_none() -> None:
    job = make_job(traceparent=SENT, webhook="https://example.org/hook")
    assert job_from_bytes(job_to_bytes(job), None) == job
    without = replace(job, traceparent="")
    import msgpack

    fields = msgpack.unpackb(job_to_bytes(job))
    assert job_from_bytes(msgpack.packb(fields[:-1]), None) == without
    assert job_from_bytes(msgpack.packb(fields[:-2]), None) == replace(without, webhook="")
    assert job_from_bytes(msgpack.packb([*fields, "newer"]), None) == job


def test_an_endpoint_without_the_packages_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"onestep\[otel\]"):
        Traces.sent_to("http://127.0.0.1:4318", "onestep", 1.0)
