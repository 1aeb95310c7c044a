"""What a worker tells of its work: metrics, traces and one log line per run of the engine.

Owns the series that are there before anything happened, and the names that an engine's stages have
in metrics. Knows jobs and runs as records; decides nothing.
"""

from __future__ import annotations

from service.batching import CloseReason
from service.brokers.base import Taken
from service.engine_thread import Drawn
from service.jobs import FailureReason, Job, Priority
from service.telemetry import BatchRun, Telemetry, exemplar_of, log_event

# As metrics call them: an engine's "encode" is that of the picture to start from.
_STAGES = ("text", "encode_input", "denoise", "decode", "draw", "encode")


class RunReports:
    """Tells of one worker's batches and pictures."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Begin every series at 0: rates need them from the start."""
        self._telemetry = telemetry
        # Kept, not looked up: the engine waits meanwhile.
        self._closed = {reason: telemetry.batch_close.labels(reason) for reason in CloseReason}
        for failure in (FailureReason.ENGINE, FailureReason.ENCODER, FailureReason.EXPIRED):
            telemetry.failed.labels(failure)
        for phase in ("taken", "running"):
            telemetry.cancelled.labels(phase)
        for priority in Priority:
            telemetry.queue_wait.labels(priority.name.lower())
        for stage in _STAGES:
            telemetry.stage_duration.labels(stage)

    def taken(self, taken: Taken) -> None:
        """What came out of the queue and is not to be drawn."""
        # Nearly always nothing, and the engine waits meanwhile.
        if taken.num_expired:
            self._telemetry.failed.labels(FailureReason.EXPIRED).inc(taken.num_expired)
        if taken.num_cancelled:
            self._telemetry.cancelled.labels("taken").inc(taken.num_cancelled)

    def closed(self, reason: CloseReason) -> None:
        """A batch, or a part of one, takes no more jobs."""
        self._closed[reason].inc()

    def encoded(self, job: Job, duration_s: float) -> None:
        """A picture has become a file."""
        telemetry = self._telemetry
        telemetry.stage_duration.labels("encode").observe(duration_s, exemplar_of(job.traceparent))
        if telemetry.traces is not None:
            telemetry.traces.encoded(job.traceparent, duration_s)

    def answered(self, *, is_wanted: bool) -> None:
        """A picture has been handed over; not wanted where its job had ended meanwhile."""
        if is_wanted:
            self._telemetry.images.inc()
        else:
            self._telemetry.cancelled.labels("running").inc()

    def failed(self, reason: FailureReason) -> None:
        """A job gets no picture."""
        self._telemetry.failed.labels(reason).inc()

    def drawn(self, drawn: Drawn) -> None:
        """One log line and one set of metrics per run of the engine."""
        jobs = [delivery.job for delivery in drawn.deliveries]
        queue_s = [drawn.dispatched_s - job.created_s for job in jobs]
        for job, wait_s in zip(jobs, queue_s, strict=True):
            self._telemetry.queue_wait.labels(job.priority.name.lower()).observe(
                wait_s, exemplar_of(job.traceparent)
            )
        self._telemetry.batch_size.observe(drawn.batch_size)
        for stage, duration_ms in drawn.stage_ms.items():
            name = "encode_input" if stage == "encode" else stage
            self._telemetry.stage_duration.labels(name).observe(duration_ms / 1000)
        key = drawn.key
        if self._telemetry.traces is not None:
            members = [(job.traceparent, wait) for job, wait in zip(jobs, queue_s, strict=True)]
            told = {"onestep.batch_size": drawn.batch_size, "onestep.steps": key.steps}
            size = {"onestep.width": key.width, "onestep.height": key.height}
            self._telemetry.traces.batch(
                BatchRun(members, drawn.run_ms / 1000, drawn.stage_ms, told | size)
            )
        log_event(
            "batch",
            batch_size=drawn.batch_size,
            width=key.width,
            height=key.height,
            steps=key.steps,
            longest_queue_ms=round(max(queue_s) * 1000, 1),
            run_ms=round(drawn.run_ms, 1),
            stage_ms={stage: round(ms, 1) for stage, ms in drawn.stage_ms.items()},
        )
