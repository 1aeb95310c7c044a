"""Every key in Redis, and how long it lives.

All keys of a model share a hash tag, so that in a cluster one model lies on one node, where a
script may touch them together. `P` is `onestep:{MODEL}:`.

    P job:ID             hash: the job's body, state, delivery number, entry, waiters, outcome
    P image:ID           the finished picture
    P queue:KEY:PRIO:LANE  stream of waiting and taken jobs, with the consumer group `workers`
    P queues             set of the streams that hold anything
    P open               sorted set of jobs without an outcome, by time of arrival
    P due                the same by deadline
    P owner:OWNER        sorted set of an owner's kept requests, by time of arrival
    P served, P turn     which lane was served when, and the counter behind it
    P webhooks           sorted set of requests with a webhook, by when another process may hold it
    P wakeups            list of wake-ups, each for one idle worker
    P wakeups:PROCESS    one for a worker that waits and is to stop
    P idle_batch         the largest batch of whoever was idle last: one wake-up is enough for it
    P replies:PROCESS    stream of ended jobs that an API process waits for
    P workers            sorted set of workers, by their last sign of life
    P dead               stream of jobs that failed for good, with the reason
    P counters           hash: outcomes that came too late, redeliveries, dead letters

Knows no connection. The scripts under redis/lua build the same names from `P`.
"""

from __future__ import annotations

import zlib

from service.jobs import Job

GROUP = "workers"
# Owners share this many lanes; two in one lane share its turns. It bounds the number of streams.
NUM_LANES = 8
# An outcome that nobody asked to be kept is still there for a process that lost its reply.
MIN_KEEP_S = 60


def prefix(model: str) -> str:
    """What every key of a model begins with."""
    return f"onestep:{{{model}}}:"


def job(model: str, job_id: str) -> str:
    """The job's hash."""
    return f"{prefix(model)}job:{job_id}"


def image(model: str, job_id: str) -> str:
    """The finished picture."""
    return f"{prefix(model)}image:{job_id}"


def queue(job: Job) -> str:
    """The stream that a job waits in."""
    key = job.key
    task = "text" if key.strength is None else f"{key.strength:g}"
    lane = zlib.crc32(job.owner.encode()) % NUM_LANES
    batch_key = f"{key.width}x{key.height}:{key.steps}:{task}"
    return f"{prefix(key.model)}queue:{batch_key}:{int(job.priority)}:{lane}"


def owner(model: str, owner: str) -> str:
    """An owner's requests."""
    return f"{prefix(model)}owner:{owner}"


def replies(model: str, process: str) -> str:
    """What an API process reads its outcomes from."""
    return f"{prefix(model)}replies:{process}"


def wakeups(model: str) -> str:
    """What idle workers wait for."""
    return f"{prefix(model)}wakeups"


def own_wakeups(model: str, process: str) -> str:
    """What ends the waiting of one worker."""
    return f"{prefix(model)}wakeups:{process}"


def webhooks(model: str) -> str:
    """Requests whose webhooks have not come to their end."""
    return f"{prefix(model)}webhooks"
