"""Calls of webhooks over real sockets: pinned to checked addresses, bounded in time and bytes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

import pytest
import trustme
from webhook_receiver import (
    HERE,
    HOST,
    TIMEOUT_S,
    Names,
    Receiver,
    Respond,
    after,
    endless,
    make_webhooks,
    outcome_of,
    raw,
    receiving,
    status,
    url_of,
    webhooks_to,
)

from service.telemetry import Telemetry
from service.webhooks.allowed import parse_allowed
from service.webhooks.caller import Caller, resolve
from service.webhooks.delivery import DeliveryOutcome, DeliveryResult
from service.webhooks.guard import Guard
from service.webhooks.retries import RetryPlan

OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"


@pytest.mark.parametrize("location", ["http://127.0.0.1:{}/", "https://10.0.0.1/", "/elsewhere"])
async def test_a_redirect_is_not_followed(receiver: Receiver, location: str) -> None:
    async with receiving() as inside:
        answer = status(307, f"Location: {location.format(inside.port)}")
        outcome = await outcome_of(receiver, answer)
        assert outcome == DeliveryOutcome(DeliveryResult.REFUSED, 1, 307)
        assert (len(receiver.received), inside.received) == (1, [])


async def test_a_name_that_changes_its_address_meanwhile_gains_nothing() -> None:
    # Both loopback addresses are reachable here; only the first one is permitted.
    async with receiving("127.0.0.2") as allowed, receiving("127.0.0.1", allowed.port) as inside:
        names = Names(["127.0.0.2"], ["127.0.0.1"])
        entry = f"{HOST}:{allowed.port}=127.0.0.2/32"
        webhooks = make_webhooks(entry, names=names)
        assert (await webhooks.deliver(url_of(allowed), "e-1", {})).num_tries == 1
        assert names.asked == [(HOST, allowed.port)]
        assert (len(allowed.received), inside.received) == (1, [])
        # The next delivery looks again, and sees where the name leads by then.
        outcome = await webhooks.deliver(url_of(allowed), "e-2", {})
        assert outcome == DeliveryOutcome(DeliveryResult.BLOCKED, 1)
        assert (len(allowed.received), inside.received) == (1, [])


@pytest.mark.parametrize(
    "addresses", [HERE, ["8.8.8.8", *HERE], ["::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]]
)
async def test_a_public_name_of_an_inside_address_is_blocked(
    receiver: Receiver, addresses: list[str]
) -> None:
    telemetry = Telemetry()
    webhooks = make_webhooks(f"{HOST}:{receiver.port}", names=Names(addresses), telemetry=telemetry)
    outcome = await webhooks.deliver(url_of(receiver), "e-1", {})
    assert outcome == DeliveryOutcome(DeliveryResult.BLOCKED, 1)
    assert receiver.received == []
    tries = "onestep_webhook_tries_total"
    assert telemetry.registry.get_sample_value(tries, {"answer": "blocked"}) == 1


async def test_the_system_s_resolver_is_asked_when_none_is_given(receiver: Receiver) -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)
    entries = (f"localhost:{receiver.port}=127.0.0.0/8", f"localhost:{receiver.port}=::1/128")
    guard = Guard(map(parse_allowed, entries), is_http_allowed=True)
    caller = Caller(guard, TIMEOUT_S)
    target = guard.check(f"http://localhost:{receiver.port}/")
    assert (await caller.post(target, {}, b"{}")).status == 204


async def test_a_second_address_is_tried_when_the_first_takes_no_connection(
    receiver: Receiver,
) -> None:
    outcome = await outcome_of(receiver, names=Names(["127.0.0.9", "127.0.0.1"]))
    assert (outcome.result, outcome.num_tries) == (DeliveryResult.DELIVERED, 1)


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "unknown"), [], ["127.0.0.9"]])
async def test_a_name_without_a_reachable_address_is_tried_again(
    receiver: Receiver, answer: Any
) -> None:
    names = Names(answer, answer, HERE)
    outcome = await outcome_of(receiver, names=names)
    assert (outcome.result, outcome.num_tries) == (DeliveryResult.DELIVERED, 3)


@pytest.mark.parametrize(
    "answer",
    [
        after(60, status(204)),
        raw(b""),
        raw(b"HTTP/1.1 200"),
        raw(b"\x16\x03\x01 hello\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
        endless(b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 4096 + b"\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.05),
    ],
    ids=["none", "empty", "cut", "no HTTP", "bad length", "header flood", "1xx flood", "drip"],
)
async def test_what_is_no_answer_takes_no_longer_than_the_time_allowed(
    receiver: Receiver, answer: Respond
) -> None:
    started_s = time.monotonic()
    outcome = await outcome_of(receiver, answer, retries=RetryPlan(1))
    assert outcome == DeliveryOutcome(DeliveryResult.GIVEN_UP, 1, None)
    assert time.monotonic() - started_s < 2 * TIMEOUT_S


@pytest.mark.parametrize(
    "answer",
    [
        endless(OK_HEAD, b"x" * 65536),
        endless(OK_HEAD, b"x", 0.05),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05),
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx"),
    ],
    ids=["huge", "slow", "slow chunks", "bad chunks", "cut"],
)
async def test_an_answer_holds_however_its_body_goes_on(
    receiver: Receiver, answer: Respond
) -> None:
    started_s = time.monotonic()
    outcome = await outcome_of(receiver, answer)
    assert outcome == DeliveryOutcome(DeliveryResult.DELIVERED, 1, 200)
    assert time.monotonic() - started_s < 2 * TIMEOUT_S


async def test_no_more_of_a_body_is_read_than_the_cap(receiver: Receiver) -> None:
    num_chunks = 0

    async def count(writer: asyncio.StreamWriter) -> None:
        nonlocal num_chunks
        writer.write(OK_HEAD)
        while num_chunks < 10_000:
            num_chunks += 1
            writer.write(b"x" * 65536)
            await writer.drain()

    await outcome_of(receiver, count)
    # What lies in the buffers of two sockets is sent and never read.
    assert num_chunks < 200


def _contexts(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server with a certificate for these names, and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_tls_keeps_the_name_though_the_connection_goes_to_an_address() -> None:
    server, client = _contexts(HOST)
    async with receiving(tls=server) as receiver:
        webhooks = webhooks_to(receiver, ssl_context=client)
        outcome = await webhooks.deliver(url_of(receiver, "https"), "e-1", {})
        assert outcome == DeliveryOutcome(DeliveryResult.DELIVERED, 1, 204)
        assert receiver.server_names == [HOST]
        assert receiver.received[0].headers["host"] == f"{HOST}:{receiver.port}"


async def test_a_certificate_of_another_name_or_authority_is_not_trusted() -> None:
    server, client = _contexts("other.example.org", "127.0.0.1")
    _, stranger = _contexts(HOST)
    async with receiving(tls=server) as receiver:
        for context in (client, stranger):
            webhooks = webhooks_to(receiver, ssl_context=context, retries=RetryPlan(1))
            outcome = await webhooks.deliver(url_of(receiver, "https"), "e-1", {})
            assert outcome == DeliveryOutcome(DeliveryResult.GIVEN_UP, 1, None)
        assert receiver.received == []


async def test_proxies_of_the_environment_are_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await outcome_of(receiver)).result is DeliveryResult.DELIVERED
