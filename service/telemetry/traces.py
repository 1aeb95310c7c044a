"""Traces: where the time of one request went, across processes, in OpenTelemetry's spans.

Owns the spans' names and attributes: a request's own, its pictures' waits in the queue and
encodings, and each batch with its stages, linked to all requests whose pictures it holds and shown
in the first one's trace.
Off unless an endpoint is set; without it the packages need not be there. A span holds no prompt,
seed or key. Knows neither HTTP nor jobs: a request's place in its trace travels as a `traceparent`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
# Of a traceparent: version-trace-span-flags, one of these being that the trace is kept.
_TRACE_ID = slice(3, 35)
_FLAGS = slice(53, 55)
_KEPT = 1

traceparent_var: ContextVar[str] = ContextVar("traceparent", default="")


@dataclass(frozen=True)
class BatchRun:
    """A batch that has just been drawn.

    Attributes:
        members: of each picture, its request's traceparent and the seconds that it waited.
        stage_ms: in the order of the run.
        attributes: what else to tell of it.
    """

    members: Sequence[tuple[str, float]]
    run_s: float
    stage_ms: Mapping[str, float]
    attributes: Mapping[str, str | int]


class RequestSpan:
    """The span of a request that is being answered."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        flags = f"{int(context.trace_flags):02x}"
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"

    def end(self, route: str, status: int, reason: str) -> None:
        """The answer has gone out."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(
            {"http.route": route, "http.response.status_code": status, "onestep.reason": reason}
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Traces:
    """The spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        """Make spans that `provider` hands on."""
        self._provider = provider
        self._tracer = provider.get_tracer("onestep")

    @classmethod
    def sent_to(cls, endpoint: str, service: str, sample_ratio: float) -> Traces:
        """Send spans as OTLP over HTTP, from a thread of their own.

        Raises:
            StartError: the packages are not installed.
        """
        try:
            is_there = importlib.util.find_spec(_EXPORTER) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            raise StartError(
                "setting otel_endpoint (ONESTEP_OTEL_ENDPOINT) needs OpenTelemetry: "
                "pip install 'onestep[otel]'"
            )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
        return cls.handed_to([BatchSpanProcessor(exporter)], service, sample_ratio)

    @classmethod
    def handed_to(
        cls, processors: Iterable[SpanProcessor], service: str, sample_ratio: float = 1.0
    ) -> Traces:
        """Hand spans to processors."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(sample_ratio),
            resource=Resource({"service.name": service}),
            shutdown_on_exit=False,
        )
        for processor in processors:
            provider.add_span_processor(processor)
        return cls(provider)

    def request(self, method: str, traceparent: str) -> RequestSpan:
        """Begin a request's span, within the sender's trace where it names one."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"http {method}",
            context=_context_of(traceparent),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        )
        return RequestSpan(span)

    def batch(self, run: BatchRun) -> None:
        """Tell of a batch, its stages, and the waits of its members, all of which are over."""
        from opentelemetry.trace import Link, get_current_span, set_span_in_context

        end_ns = time.time_ns()
        begin_ns = end_ns - _ns(run.run_s)
        kept = [member for member in run.members if _is_kept(member[0])]
        if not kept:
            return
        contexts = [(_context_of(traceparent), wait_s) for traceparent, wait_s in kept]
        for context, wait_s in contexts:
            waited = self._tracer.start_span(
                "queue", context=context, start_time=begin_ns - _ns(wait_s)
            )
            waited.end(begin_ns)
        links = [Link(get_current_span(context).get_span_context()) for context, _ in contexts]
        batch = self._tracer.start_span(
            "batch",
            context=contexts[0][0],
            links=links,
            start_time=begin_ns,
            attributes=dict(run.attributes),
        )
        stage_ns = begin_ns
        for stage, duration_ms in run.stage_ms.items():
            span = self._tracer.start_span(
                stage, context=set_span_in_context(batch), start_time=stage_ns
            )
            stage_ns += _ns(duration_ms / 1000)
            span.end(stage_ns)
        batch.end(end_ns)

    def encoded(self, traceparent: str, duration_s: float) -> None:
        """Tell that a request's picture has just become a file."""
        if _is_kept(traceparent):
            end_ns = time.time_ns()
            span = self._tracer.start_span(
                "encode", context=_context_of(traceparent), start_time=end_ns - _ns(duration_s)
            )
            span.end(end_ns)

    def close(self) -> None:
        """Send what is left; takes as long as the receiver does."""
        self._provider.shutdown()


def exemplar_of(traceparent: str) -> dict[str, str] | None:
    """What leads from a metric to a trace that is kept."""
    return {"trace_id": traceparent[_TRACE_ID]} if _is_kept(traceparent) else None


def _is_kept(traceparent: str) -> bool:
    """Of one that was made here: whether its trace is sent to the receiver."""
    return bool(traceparent) and bool(int(traceparent[_FLAGS], 16) & _KEPT)


def _context_of(traceparent: str) -> Context:
    """The place in a trace; a new trace where there is none, or what came is no traceparent."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _ns(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
