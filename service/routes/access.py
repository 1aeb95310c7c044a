"""What a sender may do and spend, on the way from a checked request to the queue.

Owns these checks, their refusals and the header that tells what is left. Knows the limiter's and
the broker's protocols, never a key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import HTTPConnection

from service.errors import Forbidden, ProblemError, QuotaExceeded, RateLimited
from service.jobs import Job, JobOutcome, Priority, job_id
from service.limits.base import Claim, Decision, Verdict
from service.principal import Principal
from service.routes.context import AppContext
from service.schemas import PRIORITIES, Generation
from service.telemetry import new_id

REMAINING_HEADER = b"x-ratelimit-remaining-pixel-steps"
# A picture that nobody reported as done counts as open for this long after its deadline.
OPEN_MARGIN_S = 5.0
_PRIORITY_NAMES = {priority: name for name, priority in PRIORITIES.items()}


@dataclass(frozen=True)
class Accepted:
    """A request's jobs as the queue has them, and their ends; `is_known`: from before."""

    jobs: Sequence[Job]
    futures: Sequence[asyncio.Future[JobOutcome]]
    is_known: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether others may want these pictures, too, now or later."""
        return self.jobs[0].keep_s > 0


def principal_of(request: HTTPConnection) -> Principal:
    """Who sends this request or opens this WebSocket; the middleware has made sure of it."""
    return cast(Principal, request.scope["state"]["principal"])


def check_model(principal: Principal, model: str) -> None:
    """Return when the sender may use the model.

    Raises:
        Forbidden: it is not on the key's list.
    """
    if not principal.may_use(model):
        raise Forbidden(
            f"model: this API key may not use {model}",
            field="model",
            allowed=list(principal.models or ()),
        )


def priority_for(principal: Principal, generation: Generation) -> Priority:
    """The key's priority, or the lower one that the request names.

    Raises:
        Forbidden: the request names a higher one.
    """
    if generation.priority is None:
        return principal.priority
    if generation.priority < principal.priority:
        name = _PRIORITY_NAMES[principal.priority]
        raise Forbidden(
            f"priority: this API key draws at {name} priority; leave the field out",
            field="priority",
            allowed=[name],
        )
    return generation.priority


async def put_within_limits(
    request: HTTPConnection, generation: Generation, jobs: Sequence[Job]
) -> Accepted:
    """Queue a request's jobs if its sender may spend so much.

    A request that is queued already is not charged again.

    Raises:
        Forbidden: the request costs more than the sender may ever spend at once.
        RateLimited: too much within a short time.
        QuotaExceeded: too much within a day.
        QueueFull: nothing is charged then.
        IdempotencyMismatch: nor then.
    """
    context = cast(AppContext, request.app.state.context)
    principal = principal_of(request)
    if principal.allowance.is_unlimited:
        return await _put(jobs, context)
    claim = _claim(principal, generation, jobs, context)
    await _take(claim, context, request.scope["state"])
    try:
        accepted = await _put(jobs, context)
    except BaseException:
        await context.limiter.give_back(claim)
        raise
    if accepted.is_known:
        await context.limiter.give_back(claim)
    elif principal.allowance.max_open_pictures:
        for open_id, future in zip(claim.job_ids, accepted.futures, strict=True):
            _release_at_end(claim.owner, open_id, future, context)
    return accepted


async def _put(jobs: Sequence[Job], context: AppContext) -> Accepted:
    futures = await context.broker.put(jobs)
    if not jobs[0].digest:
        return Accepted(jobs, futures)
    # The same request may have come a moment earlier, to any process: the secret tells whose
    # jobs they are.
    found = await context.broker.find([job.id for job in jobs], with_pictures=False)
    stored = [
        job if record is None else record.job for job, record in zip(jobs, found, strict=True)
    ]
    return Accepted(stored, futures, is_known=stored[0].secret != jobs[0].secret)


def _claim(
    principal: Principal, generation: Generation, jobs: Sequence[Job], context: AppContext
) -> Claim:
    """What the request would spend.

    Raises:
        Forbidden: no wait would make it possible.
    """
    allowance, cost = principal.allowance, generation.num_pixel_steps
    whose = "this API key" if principal.owner else "a request without an API key"
    most = [
        *([allowance.effective_burst] if allowance.rate_pixel_steps_per_s else []),
        *([allowance.daily_pixel_steps] if allowance.daily_pixel_steps else []),
    ]
    if most and cost > min(most):
        raise Forbidden(
            f"the request costs {cost} pixel-steps and {whose} may spend at most {min(most)} at "
            "once: ask for fewer pictures, fewer steps or a smaller size",
            field="num_images",
            allowed={"max_pixel_steps": min(most)},
        )
    if 0 < allowance.max_open_pictures < len(jobs):
        raise Forbidden(
            f"{whose} may have at most {allowance.max_open_pictures} pictures drawn at a time",
            field="num_images",
            allowed={"min": 1, "max": allowance.max_open_pictures},
        )
    open_s = max(job.deadline_s for job in jobs) - context.broker.now_s() + OPEN_MARGIN_S
    # Ids of its own: two requests with one idempotency key have the same jobs, and the one that
    # came too late must not release what the other one holds.
    claim = new_id()
    open_ids = tuple(job_id(claim, index) for index in range(len(jobs)))
    return Claim(principal.owner, allowance, cost, open_ids, open_s)


async def _take(claim: Claim, context: AppContext, state: MutableMapping[str, Any]) -> None:
    decision = await context.limiter.take(claim)
    if decision.remaining is not None:
        state.setdefault("headers", []).append(
            (REMAINING_HEADER, str(decision.remaining).encode("ascii"))
        )
    if decision.verdict is not Verdict.ALLOWED:
        raise _refusal(claim, decision)


def _refusal(claim: Claim, decision: Decision) -> ProblemError:
    allowance, wait_s = claim.allowance, decision.retry_after_s
    if decision.verdict is Verdict.OPEN:
        return RateLimited(
            f"at most {allowance.max_open_pictures} pictures may be drawn at a time: "
            "wait for one to be done",
            retry_after_s=wait_s,
        )
    if decision.verdict is Verdict.RATE:
        return RateLimited(
            f"the request costs {claim.cost} pixel-steps and {decision.remaining} are left; "
            f"{allowance.rate_pixel_steps_per_s} come back every second",
            retry_after_s=wait_s,
        )
    return QuotaExceeded(
        f"the request costs {claim.cost} pixel-steps, more than is left of today's "
        f"{allowance.daily_pixel_steps}; the day ends at midnight UTC",
        retry_after_s=wait_s,
    )


def _release_at_end(
    owner: str, open_id: str, future: asyncio.Future[JobOutcome], context: AppContext
) -> None:
    def release(_: asyncio.Future[JobOutcome]) -> None:
        # A loop that is being closed runs callbacks, and has no more use for the count.
        with contextlib.suppress(RuntimeError):
            context.limiter.release(owner, (open_id,))

    future.add_done_callback(release)
