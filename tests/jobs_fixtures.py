"""The service's parts around either queue, and what tests of jobs ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service_stack import Stack, running

from engines.pipeline import Pipeline
from service.brokers.redis import RedisBroker, RedisOptions
from service.processes.models import load_limits

JOBS = "/v1/jobs"
TERMINAL = {"succeeded", "failed", "cancelled", "expired"}


@asynccontextmanager
async def redis_broker(bundle: Path, url: str) -> AsyncIterator[RedisBroker]:
    """One process's end of the queue in Redis."""
    broker = RedisBroker(url, [load_limits(bundle).name], RedisOptions())
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@asynccontextmanager
async def running_on(
    queue: str, bundle: Path, pipeline: Pipeline, url: str, **settings: Any
) -> AsyncIterator[Stack]:
    """The service's parts with the queue in memory or in Redis."""
    if queue == "memory":
        async with running(bundle, pipeline, **settings) as stack:
            yield stack
        return
    async with redis_broker(bundle, url) as broker:
        async with running(bundle, pipeline, broker, **settings) as stack:
            yield stack


async def ended(stack: Stack, job: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A job's document, once it is at its end."""
    return await reaches(stack, job, TERMINAL, headers)


async def reaches(
    stack: Stack, job: str, states: set[str], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """A job's document, once it is in one of the states."""
    async with asyncio.timeout(20):
        while True:
            document = await read(stack, job, headers)
            if document["state"] in states:
                return document
            await asyncio.sleep(0.01)


async def read(stack: Stack, job: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A job's document as it is now."""
    response = await stack.client.get(f"{JOBS}/{job}", headers=headers)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


async def create(
    stack: Stack, headers: dict[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """The document of a job that was accepted."""
    response = await stack.client.post(JOBS, json={"prompt": "heart"} | fields, headers=headers)
    assert response.status_code == 202, response.text
    document: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{JOBS}/{document['id']}"
    return document
