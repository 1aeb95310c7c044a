"""WS /v1/realtime: prompts in as they are typed, pictures out, the newest first and only.

Owns a connection: its one waiting message, its one picture in flight, its bounds and its end. The
jobs of all connections meet in the broker, so they share batches with each other and with the HTTP
routes; where the queue is full, connections take turns. Knows the broker's protocol, never an
engine.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import cast

import orjson
from fastapi import APIRouter, Response, WebSocket, WebSocketDisconnect
from starlette.types import Message

from service.errors import (
    ProblemError,
    QueueFull,
    RateLimited,
    TooManyConnections,
    problem_document,
    retry_headers,
    status_of,
)
from service.realtime_wire import (
    Wish,
    error_message,
    hello_message,
    parse_wish,
    picture_frame,
    read_wish,
    waiting_message,
)
from service.routes.accepting import Terms, make_jobs
from service.routes.access import principal_of, put_within_limits
from service.routes.context import AppContext
from service.routes.drawing import admission, wait_for
from service.schemas import MAX_SEED
from service.tasks import end_tasks
from service.telemetry import log_event

# The broker's hint is the time until its queue is empty, but one place is enough for one picture.
MIN_RETRY_S, MAX_RETRY_S = 0.02, 1.0
# A seat is free again as soon as somebody leaves.
SEAT_RETRY_S = 5.0

router = APIRouter()


class End(StrEnum):
    """Why a connection ended."""

    CLIENT = "client"
    IDLE = "idle"
    BINARY = "binary"
    TOO_LARGE = "too_large"
    # The other side takes no bytes, so it would not take a close frame either.
    STUCK = "stuck"
    FAILED = "failed"


CLOSE_CODES = MappingProxyType({End.IDLE: 1000, End.BINARY: 1003, End.TOO_LARGE: 1009})


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Draw what one connection types, until it ends."""
    context = cast(AppContext, websocket.app.state.context)
    request_id: str = websocket.scope["state"]["request_id"]
    if len(context.connections) >= context.settings.realtime_max_connections:
        await _refuse(websocket, context, request_id)
        return
    connection = _Connection(websocket, context, request_id)
    context.connections.add(connection)
    context.telemetry.realtime_connections.inc()
    end = End.FAILED
    try:
        end = await connection.serve()
    finally:
        context.connections.discard(connection)
        context.telemetry.realtime_connections.dec()
        context.telemetry.realtime_closed.labels(end).inc()
        log_event("realtime_closed", reason=end, num_pictures=connection.num_pictures)


async def _refuse(websocket: WebSocket, context: AppContext, request_id: str) -> None:
    """Answer the handshake with a problem document instead of a connection."""
    error = TooManyConnections(
        f"at most {context.settings.realtime_max_connections} connections may be open; "
        "POST /v1/generate needs none",
        retry_after_s=SEAT_RETRY_S,
    )
    row = status_of(error)
    context.telemetry.rejected.labels(row.code).inc()
    await websocket.send_denial_response(
        Response(
            orjson.dumps(problem_document(error, request_id)),
            status_code=row.status,
            media_type="application/problem+json",
            headers=retry_headers(error),
        )
    )


@dataclass(frozen=True)
class _Received:
    """A message as it came; it is parsed only once it is to be drawn."""

    text: str
    received_s: float
    has_been_told_to_wait: bool = False


class _Connection:
    """One client: a reader that keeps the newest message, and a loop that draws it."""

    def __init__(self, websocket: WebSocket, context: AppContext, request_id: str) -> None:
        self._websocket = websocket
        self._context = context
        self._request_id = request_id
        # One seed for messages without their own: typing then changes the picture by the prompt.
        self._seed = random.randrange(MAX_SEED + 1)
        self._newest: _Received | None = None
        self._has_newest = asyncio.Event()
        # Where the queue was full: our place among those who wait for room.
        self._place: int | None = None
        self._retry_s = MIN_RETRY_S
        self.num_pictures = 0

    async def serve(self) -> End:
        """Read and draw until one of them ends; what is queued then is cancelled."""
        await self._websocket.accept()
        hello = hello_message(
            self._context.limits,
            seed=self._seed,
            max_message_bytes=self._context.settings.realtime_max_message_bytes,
        )
        tasks = [asyncio.create_task(self._read_all()), asyncio.create_task(self._draw_all(hello))]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)
        end = ended.pop().result()
        if end in CLOSE_CODES:
            await self._websocket.close(CLOSE_CODES[end], end)
        return end

    async def _read_all(self) -> End:
        """Keep the newest message. Others are dropped unread: reading them is the cheap part."""
        settings = self._context.settings
        while True:
            try:
                async with asyncio.timeout(settings.realtime_idle_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                return End.IDLE
            if message["type"] == "websocket.disconnect":
                return End.CLIENT
            text = message.get("text")
            if text is None:
                return End.BINARY
            # The server counts bytes before it hands a message over; not every server does.
            if len(text) > settings.realtime_max_message_bytes:
                return End.TOO_LARGE
            if self._newest is not None:
                # A whole packet of messages may be there at once; others want their turn too.
                await asyncio.sleep(0)
            if self._newest is not None:
                self._count("stale")
            self._newest = _Received(text, time.perf_counter())
            self._has_newest.set()

    async def _draw_all(self, hello: str) -> End:
        """Answer the newest message, one after another: a picture never overtakes a newer one."""
        pace_s = 1 / self._context.settings.realtime_max_fps
        try:
            await self._send(hello)
            while True:
                await self._has_newest.wait()
                is_our_turn = await self._is_our_turn()
                started_s = time.perf_counter()
                await self._answer(self._take_newest(), is_our_turn)
                # Only then the next is parsed: a flood of messages costs no more than this. In line
                # it is parsed for room that was made, or after a while.
                if self._place is None:
                    await asyncio.sleep(max(0.0, started_s + pace_s - time.perf_counter()))
        except WebSocketDisconnect:
            return End.CLIENT
        except TimeoutError:
            return End.STUCK

    async def _is_our_turn(self) -> bool:
        """Wait until nobody would be overtaken; False when that takes so long that it is told."""
        turns = self._context.turns
        if self._place is None:
            if not turns.is_anyone_waiting:
                return True
            self._place, self._retry_s = turns.new_place(), MAX_RETRY_S
        return await turns.wait(self._place, self._retry_s)

    def _take_newest(self) -> _Received:
        received = self._newest
        assert received is not None, "the event says that there is one"
        self._newest = None
        self._has_newest.clear()
        return received

    async def _answer(self, received: _Received, is_our_turn: bool) -> None:
        """Send what a message brings about: a picture, or why there is none."""
        wish_id = None
        try:
            wish = read_wish(received.text, self._seed)
            wish_id = wish.id
            frame = await self._draw(wish, received, is_our_turn)
        except QueueFull as error:
            self._place = self._place or self._context.turns.new_place()
            self._retry_s = _retry_s(error)
            await self._keep(received, wish_id)
        except RateLimited as error:
            self._leave_line()
            self._retry_s = _retry_s(error)
            await self._keep(received, wish_id)
            await asyncio.sleep(self._retry_s)
        except ProblemError as error:
            self._leave_line()
            self._count(status_of(error).code)
            await self._send(error_message(wish_id, error, self._request_id))
        else:
            await self._send(frame)
            self.num_pictures += 1
            self._count("drawn")

    async def _draw(self, wish: Wish, received: _Received, is_our_turn: bool) -> bytes:
        context = self._context
        with admission(context):
            generation = parse_wish(wish, context.limits)
        if not is_our_turn:
            raise QueueFull("others have waited longer", retry_after_s=MAX_RETRY_S)
        # Outside: a full queue refuses nothing here, the wish waits.
        principal = principal_of(self._websocket)
        terms = Terms(generation.format, context.settings.deadline_s)
        jobs = await make_jobs(generation, terms, context, principal)
        accepted = await put_within_limits(self._websocket, generation, jobs)
        self._place = None
        (done,) = await wait_for(_never_departs, accepted, context)
        total_ms = (time.perf_counter() - received.received_s) * 1000
        return picture_frame(wish.id, generation, done, total_ms)

    def _leave_line(self) -> None:
        """Let the next one have the room that this message does not take."""
        if self._place is not None:
            self._place = None
            self._context.turns.note_room()

    async def _keep(self, received: _Received, wish_id: int | None) -> None:
        """Keep a message for another try, unless a newer one has come, and tell of it once."""
        if self._newest is not None:
            self._count("stale")
            return
        self._newest = replace(received, has_been_told_to_wait=True)
        self._has_newest.set()
        if not received.has_been_told_to_wait:
            self._count("delayed")
            await self._send(waiting_message(wish_id, self._retry_s))

    async def _send(self, message: str | bytes) -> None:
        """Send one message, and return only when the connection could take another.

        Raises:
            TimeoutError: the client has taken nothing for as long as it may be idle.
            WebSocketDisconnect: it has gone.
        """
        async with asyncio.timeout(self._context.settings.realtime_idle_s):
            if isinstance(message, str):
                await self._websocket.send_text(message)
            else:
                await self._websocket.send_bytes(message)

    def _count(self, outcome: str) -> None:
        self._context.telemetry.realtime_messages.labels(outcome).inc()


def _retry_s(error: ProblemError) -> float:
    """When to try again: the hint within bounds."""
    return min(max(error.retry_after_s or 0.0, MIN_RETRY_S), MAX_RETRY_S)


async def _never_departs() -> Message:
    """Stands in for a request's `receive`: here the reader sees the client leave."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")
