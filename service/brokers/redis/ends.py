"""How a process hears of the ends of jobs.

Owns those who wait here, the reader of the streams that tell of ends, and the second look at what a
stream may have lost: it only hints, the jobs' hashes are the truth. Outcomes that nobody asked to
keep are forgotten from here, once all who waited have heard of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.brokers import keys
from service.brokers.pace import Pace
from service.brokers.redis.connection import RedisConnection
from service.brokers.redis.records import Named, delete_records, read_records
from service.brokers.redis.waiting import Waited, Waiters
from service.errors import QueueUnavailable
from service.jobs import FailureReason, Job, JobDone, JobFailed, JobOutcome
from service.tasks import end_tasks
from service.telemetry import log_event

# A reply takes milliseconds: who has waited longer is worth a look at the truth.
_ASK_AFTER_S = 0.5
_MAX_ASKED = 500
_RECONNECT_S = 0.2


class Ends:
    """Futures of jobs that end in other processes."""

    def __init__(
        self, connection: RedisConnection, models: Sequence[str], process: str, pace: Pace
    ) -> None:
        self._connection = connection
        self._models = tuple(models)
        self._process = process
        self._pace = pace
        self._waiters = Waiters()
        self._forgettable: list[Named] = []
        self._reader: asyncio.Task[None] | None = None

    def stream(self, model: str) -> str:
        """Where this process is told of a model's jobs."""
        return keys.replies(model, self._process)

    def is_awaited(self, job_id: str) -> bool:
        """Whether somebody here waits for the job."""
        return bool(self._waiters.known([job_id]))

    async def stop(self) -> None:
        """End the reader."""
        if self._reader is not None:
            await end_tasks(self._reader)

    def expect(self, jobs: Sequence[Job]) -> list[asyncio.Future[JobOutcome]]:
        """Futures from before the jobs are queued: a reply may overtake the answer to `put`."""
        self._listen()
        return [self._waiters.add(job.id, job.key.model) for job in jobs]

    def dismiss(self, jobs: Sequence[Job], futures: Sequence[asyncio.Future[JobOutcome]]) -> None:
        """The jobs were not accepted."""
        for job, future in zip(jobs, futures, strict=True):
            self._waiters.drop(job.id, future)

    async def watch(self, job_ids: Sequence[str]) -> list[asyncio.Future[JobOutcome] | None]:
        """Join those who wait, here and on the server; None for ids that are not known."""
        self._listen()
        futures: dict[str, asyncio.Future[JobOutcome]] = {}
        ended: list[Waited] = []
        for model in self._models:
            added = {i: self._waiters.add(i, model) for i in job_ids}
            arguments = [self.stream(model), *job_ids]
            try:
                states = await self._connection.script("watch", keys.prefix(model), arguments)
            except BaseException:
                for job_id, future in (*futures.items(), *added.items()):
                    self._waiters.drop(job_id, future)
                raise
            for (job_id, future), state in zip(added.items(), states, strict=True):
                if state == b"unknown":
                    self._waiters.drop(job_id, future)
                    continue
                futures[job_id] = future
                if state == b"ended":
                    ended += self._waiters.known([job_id])
        await self._resolve(ended)
        return [futures.get(job_id) for job_id in job_ids]

    async def sweep(self) -> None:
        """Look for ends that no stream told of, and forget what all have heard of."""
        await self._resolve(self._waiters.older_than(_ASK_AFTER_S, _MAX_ASKED))
        if self._forgettable:
            named, self._forgettable = self._forgettable, []
            await delete_records(self._connection, named)

    def _listen(self) -> None:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """For ever; what is missed while the server is away, the sweep finds."""
        positions = {self.stream(model): "0" for model in self._models}
        while True:
            try:
                for stream, entries in (await self._connection.read(positions)).items():
                    positions[stream] = entries[-1][0]
                    await self._resolve(self._waiters.known(job_id for _, job_id in entries))
            except QueueUnavailable:
                await asyncio.sleep(_RECONNECT_S)

    async def _resolve(self, waited: Sequence[Waited]) -> None:
        """Tell those who wait for jobs that have ended, or that are gone."""
        if not waited:
            return
        named = [(one.model, one.job_id) for one in waited]
        try:
            records = await read_records(self._connection, named)
        except QueueUnavailable:
            return  # The sweep asks again.
        for one in waited:
            record = records.get((one.model, one.job_id))
            if record is None:
                log_event("job_lost", job_id=one.job_id)
                self._waiters.resolve(JobFailed(one.job_id, FailureReason.LOST))
            elif record.outcome is not None:
                if isinstance(record.outcome, JobDone):
                    self._pace.note(record.outcome)
                self._waiters.resolve(record.outcome)
                if not record.job.keep_s:
                    self._forgettable.append((one.model, one.job_id))
