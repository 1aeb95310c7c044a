"""From a checked request to its jobs in the queue, or to those that it has there already.

Owns a request's jobs: their ids, deadline and how long they are kept. Knows the broker's protocol,
neither a wire format nor an engine.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import cast

from fastapi import Request

from service.brokers.base import lost_where_unknown
from service.errors import IdempotencyMismatch
from service.jobs import ImageFormat, Job, job_id
from service.principal import Principal
from service.routes.access import (
    Accepted,
    check_model,
    principal_of,
    priority_for,
    put_within_limits,
)
from service.routes.context import AppContext
from service.routes.idempotency import FIELD, RequestKey, mark_replayed
from service.schemas import Generation
from service.telemetry import new_id, traceparent_var


@dataclass(frozen=True)
class Terms:
    """How a request wants to be drawn, beside what it wants.

    Attributes:
        format: of its pictures.
        deadline_s: from now on.
        is_kept: whether its outcomes can be read for a while.
        key: where it may come again; its outcomes are kept then, too.
    """

    format: ImageFormat
    deadline_s: float
    is_kept: bool = False
    key: RequestKey | None = None


async def accept(request: Request, generation: Generation, terms: Terms) -> Accepted:
    """Queue a request's jobs, or find those of the same request that came before.

    Raises:
        IdempotencyMismatch: its key came with another request.
        InvalidRequest: what it starts from is no picture that is accepted.
        PictureTooLarge: or has too many pixels.
        Forbidden: the sender may not do this, or not at this priority.
        RateLimited: too much within a short time.
        QuotaExceeded: too much within a day.
        QueueFull: too many pictures wait to be drawn or decoded.
    """
    context = cast(AppContext, request.app.state.context)
    if terms.key is not None:
        # Before anything is decoded or charged.
        known = await _known(terms.key, len(generation.seeds), context)
        if known is not None:
            mark_replayed(request)
            return known
    jobs = await make_jobs(generation, terms, context, principal_of(request))
    accepted = await put_within_limits(request, generation, jobs)
    if accepted.is_known:
        mark_replayed(request)
    return accepted


async def make_jobs(
    generation: Generation, terms: Terms, context: AppContext, principal: Principal
) -> list[Job]:
    """One job per picture, in its sender's name; all start from the same image.

    Raises:
        Forbidden: the sender may not use the model, or not at this priority.
        InvalidRequest: what it starts from is no picture that is accepted.
        PictureTooLarge: or has too many pixels.
        QueueFull: too many pictures wait to be decoded.
    """
    check_model(principal, generation.key.model)
    priority = priority_for(principal, generation)
    now_s = context.broker.now_s()
    # For those only who may draw: it may take seconds of a processor.
    image = await _decoded_image(generation, context)
    is_kept = terms.is_kept or terms.key is not None
    request = _request_id(terms, is_kept)
    return [
        Job(
            id=job_id(request, index),
            key=generation.key,
            prompt=generation.prompt,
            seed=seed,
            format=terms.format,
            created_s=now_s,
            deadline_s=now_s + terms.deadline_s,
            quality=generation.quality,
            owner=principal.owner,
            priority=priority,
            num_images=len(generation.seeds),
            keep_s=context.settings.result_ttl_s if is_kept else 0.0,
            secret=secrets.token_urlsafe(24) if is_kept else "",
            digest="" if terms.key is None else terms.key.digest,
            image=image,
            webhook=generation.webhook or "",
            traceparent=traceparent_var.get(),
        )
        for index, seed in enumerate(generation.seeds)
    ]


async def _decoded_image(generation: Generation, context: AppContext) -> bytes | None:
    if generation.image is None:
        return None
    size_px = (generation.key.width, generation.key.height)
    return await context.decoders.decode(generation.image, generation.mask, size_px)


def _request_id(terms: Terms, is_kept: bool) -> str:
    if terms.key is not None:
        return terms.key.request
    # Where no keys are asked, whoever knows the id of what is kept may read it.
    return secrets.token_hex(16) if is_kept else new_id()


async def _known(key: RequestKey, num_images: int, context: AppContext) -> Accepted | None:
    """The jobs of a request that came before with this key.

    Raises:
        IdempotencyMismatch: it was another one.
    """
    ids = [job_id(key.request, index) for index in range(num_images)]
    records = await context.broker.find(ids, with_pictures=False)
    if records[0] is None:
        return None
    first = records[0].job
    if first.digest != key.digest:
        raise IdempotencyMismatch(
            f"{FIELD}: it came with another request before; use a new one", field=FIELD
        )
    jobs = [
        replace(first, id=missing) if record is None else record.job
        for record, missing in zip(records, ids, strict=True)
    ]
    futures = lost_where_unknown(ids, await context.broker.watch(ids))
    return Accepted(jobs, futures, is_known=True)
