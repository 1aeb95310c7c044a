"""The service benchmark's arithmetic: when a request was due, what an answer is worth."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.bench.overhead.client import Connection, LoneConnection, Reply, request_bytes
from tests.bench.overhead.cores import apart
from tests.bench.overhead.engine import MAX_BATCH_SIZE, Dial, Pace
from tests.bench.overhead.loads import Address, Asked, Load, Seeds, arrivals, lone_load
from tests.bench.overhead.rounds import NUM_AT_ONCE, is_disturbed
from tests.bench.overhead.typing_load import Typing, Typist, read_frame
from tests.bench.overhead.verdicts import Rounds, Verdict

JPEG = b"\xff\xd8\xff body \xff\xd9"


def _asked(due_s: float, ended_s: float, *, sent_s: float | None = None, **reply: Any) -> Asked:
    fields: dict[str, Any] = {"status": 200, "is_right": True, "batch_size": 8, "num_bytes": 9}
    return Asked(
        due_s, due_s if sent_s is None else sent_s, Reply(**fields | reply, ended_s=ended_s)
    )


def test_a_request_that_could_not_be_sent_counts_from_when_it_was_due() -> None:
    assert _asked(1.0, 3.5, sent_s=3.0).latency_ms == 2500
    # A timer that fires early makes no answer quicker than it was.
    assert _asked(1.0, 3.0, sent_s=0.5).latency_ms == 2500
    load = Load([_asked(1.0, 3.5, sent_s=3.0), _asked(1.0, 1.5, sent_s=0.9)], 10)
    assert load.lateness_ms(1.0) == 2000
    assert load.lateness_ms(0.5) == 0


def test_the_first_batch_starts_the_clock() -> None:
    batches = [_asked(0.0, end_s) for end_s in (0.7, 0.8, 0.9) for _ in range(8)]
    assert Load(batches, 10).images_per_s(8) == pytest.approx(16 / 0.2)
    assert Load(batches[:8], 10).images_per_s(8) == 0


def test_goodput_counts_right_pictures_in_time_and_nothing_else() -> None:
    load = Load(
        [
            _asked(0.0, 0.1),
            _asked(0.0, 0.3),
            _asked(0.0, 0.01, status=429, is_right=False),
            _asked(0.0, 0.01, status=500, is_right=False),
            _asked(0.0, 0.01, status=200, is_right=False),
            _asked(0.0, 0.01, status=0, is_right=False),
        ],
        duration_s=2.0,
    )
    assert load.goodput_per_s(200) == 0.5
    assert (len(load.right), load.num_refused, load.num_lost) == (2, 1, 3)
    # Refusals are quick; they must not make the service look so.
    assert load.latency_ms(0.5) == 100


def test_every_picture_of_a_batch_is_a_part_of_it() -> None:
    sizes = [8] * 8 + [2] * 2
    assert Load([_asked(0, 1, batch_size=size) for size in sizes], 1).mean_batch_size == 5


def test_arrivals_are_a_poisson_process() -> None:
    times_s = list(arrivals(250.0, 40.0, seed=3))
    assert times_s == list(arrivals(250.0, 40.0, seed=3)) != list(arrivals(250.0, 40.0, seed=4))
    assert 0 < times_s[0] and times_s[-1] < 40 and times_s == sorted(times_s)
    per_second = [sum(second <= at_s < second + 1 for at_s in times_s) for second in range(40)]
    mean = sum(per_second) / 40
    variance = sum((count - mean) ** 2 for count in per_second) / 39
    assert abs(mean - 250) < 10
    # Even spacing would have none.
    assert 100 < variance < 500


class _Wire:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_aborted = False

    def write(self, content: bytes) -> None:
        self.written += content

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def _head(length: int, status: str = "200 OK", seed: int | None = 7) -> bytes:
    named = "" if seed is None else f"x-onestep-seed: {seed}\r\nX-Onestep-Batch-Size: 3\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{named}\r\n".encode()


@pytest.mark.parametrize("num_bytes_at_once", [1, 7, 1000])
@pytest.mark.parametrize(
    ("answer", "status", "is_right", "batch_size"),
    [
        (_head(len(JPEG)) + JPEG, 200, True, 3),
        (_head(len(JPEG), seed=None) + JPEG, 200, True, 0),
        (_head(len(JPEG), seed=8) + JPEG, 200, False, 3),
        (_head(len(JPEG), seed=77) + JPEG, 200, False, 3),
        (_head(4) + b"nope", 200, False, 3),
        (_head(5) + JPEG[:5], 200, False, 3),
        (_head(len(JPEG), status="429 Too Many") + JPEG, 429, False, 3),
        (_head(0, status="500 Oh") + b"", 500, False, 3),
    ],
)
async def test_an_answer_is_right_when_it_is_the_whole_picture_of_that_seed(
    answer: bytes, status: int, is_right: bool, batch_size: int, num_bytes_at_once: int
) -> None:
    connection, wire = Connection(), _Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    # Twice: what is left of one answer must not leak into the next.
    for _ in range(2):
        reply = connection.ask(b"request", seed=7)
        for begin in range(0, len(answer), num_bytes_at_once):
            assert not reply.done()
            connection.data_received(answer[begin : begin + num_bytes_at_once])
        assert (reply.result().status, reply.result().is_right) == (status, is_right)
        assert reply.result().batch_size == batch_size
    assert wire.written == b"request" * 2


async def test_a_broken_connection_is_an_answer_too() -> None:
    connection, wire = Connection(), _Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    reply = connection.ask(b"request", seed=7)
    connection.data_received(_head(100) + JPEG)
    connection.connection_lost(None)
    assert (reply.result().status, reply.result().is_right) == (0, False)
    wire.abort()
    assert connection.ask(b"request", seed=7).result().status == 0


@contextmanager
def _answering(*pieces: bytes, num_answers: int = 1000) -> Iterator[Address]:
    """A server of one connection that sends these pieces for each request, then leaves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for _ in range(num_answers):
                    if not connection.recv(65536):
                        return
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(0.002)  # so that it comes by itself

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1], "/v1/generate")
        thread.join()


@pytest.mark.parametrize("num_bytes_at_once", [40, 1000])
def test_a_lone_client_waits_for_the_whole_answer(num_bytes_at_once: int) -> None:
    answer = _head(len(JPEG)) + JPEG
    pieces = [
        answer[begin : begin + num_bytes_at_once]
        for begin in range(0, len(answer), num_bytes_at_once)
    ]
    with _answering(*pieces) as address:
        connection = LoneConnection(address.host, address.port)
        replies = [connection.ask(b"request", seed) for seed in (7, 8, 7)]
        connection.close()
    # The server answers with the picture of seed 7 always.
    assert [reply.is_right for reply in replies] == [True, False, True]
    assert {reply.status for reply in replies} == {200}
    assert [reply.ended_s for reply in replies] == sorted(reply.ended_s for reply in replies)


def test_a_lone_client_asks_until_its_time_is_over() -> None:
    answer = _head(len(JPEG), seed=None) + JPEG
    with _answering(answer) as address:
        load = lone_load(address, Seeds(), warm_up_s=0.05, duration_s=0.1)
    assert load.num_lost == 0 and 1 < len(load.right) <= 0.1 / 0.002
    begin_s = load.asked[0].reply.ended_s
    assert load.asked[-1].reply.ended_s - begin_s <= 0.1


def test_a_lone_client_whose_server_leaves_has_lost_one_request() -> None:
    answer = _head(len(JPEG), seed=None) + JPEG
    with _answering(answer, num_answers=3) as address:
        load = lone_load(address, Seeds(), warm_up_s=0.0, duration_s=30.0)
    assert (len(load.right), load.num_lost, len(load.asked)) == (3, 1, 4)


def test_no_request_equals_another() -> None:
    requests = {request_bytes("/v1/generate", seed) for seed in range(100)}
    assert len(requests) == 100
    head, _, body = requests.pop().partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert set(orjson.loads(body)) == {"prompt", "seed", "format"}


def test_a_prompt_is_answered_by_its_picture_or_a_newer_one() -> None:
    typist = Typist(sent_s=[0.0, 0.1, 0.2, 0.3], seen=[(0, 0.05), (2, 0.5), (1, 0.6)])
    assert typist.latencies_ms() == pytest.approx([50, 400, 300, float("inf")])
    # The picture of prompt 1 came after that of prompt 2.
    assert typist.num_stale == 1
    summary = Typing([typist, Typist(sent_s=[0.0], seen=[(0, 0.1)])], 0.5).summary()
    assert (summary["num_stale"], summary["num_unanswered"], summary["num_prompts"]) == (1, 1, 5)
    assert summary["p99_ms"] == summary["worst_client_p99_ms"] == float("inf")
    assert summary["pictures_per_s"] == 3 / 0.5


def test_a_frame_is_a_length_a_header_and_a_picture() -> None:
    header = orjson.dumps({"id": 12, "seed": 1})
    assert read_frame(struct.pack(">I", len(header)) + header + JPEG) == (12, JPEG)


def test_the_dial_is_one_file_that_every_process_reads(tmp_path: Path) -> None:
    ours, theirs = Dial(tmp_path / "dial"), Dial(tmp_path / "dial")
    assert theirs.read().batch_ms(8) == 0
    ours.turn(Pace(2.0, 3.0))
    assert theirs.read().batch_ms(8) == 26


def _round(speed: float, engine: float, *, is_discarded: bool = False) -> dict[str, Any]:
    cell = {"images_per_s": speed}
    return {
        "is_discarded": is_discarded,
        "engine_images_per_s": {"306/s": engine},
        "servers": {"onestep": {f"306/s, {NUM_AT_ONCE} clients": cell}},
    }


def test_a_share_is_of_the_same_rounds_engine_and_of_kept_rounds_only() -> None:
    rounds = Rounds([_round(290, 300), _round(295, 300), _round(9, 300, is_discarded=True)])
    share = rounds.share("onestep", "306/s")
    assert share.value == pytest.approx(292.5 / 300)
    assert share.low is not None and share.high is not None
    assert 290 / 300 <= share.low <= share.value <= share.high <= 295 / 300
    assert rounds.best_litserve("306/s") is None


@pytest.mark.parametrize(
    ("before", "after", "is_discarded"),
    [(880, 870, False), (880, 840, True), (840, 880, True)],
)
def test_a_round_is_discarded_when_the_engine_alone_was_disturbed(
    before: float, after: float, is_discarded: bool
) -> None:
    """It sleeps 9 ms for eight pictures: 889 per second at most."""
    others = {"306/s": 305.0}
    assert is_disturbed({"879/s": before} | others, {"879/s": after} | others) is is_discarded


@pytest.mark.parametrize(
    ("value", "is_at_least", "is_met"),
    [(1.0, True, True), (0.9, True, False), (1.0, False, True), (1.1, False, False)],
)
def test_a_goal_has_a_side(value: float, is_at_least: bool, is_met: bool) -> None:
    assert Verdict("x", value, None, None, 1.0, is_at_least).is_met is is_met


def test_largest_batches_are_what_the_service_makes_by_default() -> None:
    from service.settings import Settings

    assert MAX_BATCH_SIZE == Settings.model_fields["max_batch_size"].default


def test_client_and_server_have_their_own_cores_for_a_while() -> None:
    before = os.sched_getaffinity(0)
    waits = "import threading, sys; threading.Thread(target=sys.stdin.read).start()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{waits}; print(flush=True)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()  # both threads are there
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        with apart(process.pid) as is_apart:
            assert is_apart == (len(before) > 1)
            inside = [os.sched_getaffinity(thread) for thread in threads]
            if is_apart:
                assert not os.sched_getaffinity(0) & set().union(*inside)
        assert [os.sched_getaffinity(thread) for thread in (0, *threads)] == 3 * [before]
        process.stdin.close()
