"""The load client counts from when a request was due, loses none, and writes a page of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from keys_fixtures import make_key, write_keys
from service_process import running_service

from tests.bench.open_loop.__main__ import num_amiss
from tests.bench.open_loop.page import client_warning, render
from tests.bench.open_loop.sending import BadAddress, Sent, Target, send_stage
from tests.bench.open_loop.stages import summary
from tests.bench.overhead.engine import encode_jpeg, texture_HWC

PICTURE = encode_jpeg(texture_HWC(0))
RIGHT = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(PICTURE) + PICTURE
FULL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
WRONG = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope"

Answer = Callable[[int, asyncio.StreamWriter], None]


async def sent_to(
    answer: Answer, rate_per_s: float, duration_s: float, give_up_s: float = 10
) -> list[Sent]:
    """What comes of a server that answers its n-th request so."""
    num_asked = 0
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        serving.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: (\d+)", head)
                assert length
                await reader.readexactly(int(length[1]))
                num_asked += 1
                answer(num_asked, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has left.
        finally:
            writer.close()

    amiss: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: amiss.append(context))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        target = Target.at(url, None, ["heart"], give_up_s)
        sent = await send_stage(target, rate_per_s, duration_s, seed=3)
        await asyncio.wait([task for task in serving if task is not None], timeout=10)
    assert amiss == []
    return sent


async def test_a_service_that_stands_still_is_seen_by_all_who_were_due_meanwhile() -> None:
    begun_s = asyncio.get_running_loop().time()

    def answer(number: int, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        # From 0.3 s to 0.8 s after the start nothing is answered.
        elapsed_s = loop.time() - begun_s
        wait_s = 0.8 - elapsed_s if 0.3 <= elapsed_s < 0.8 else 0.0
        loop.call_later(wait_s, writer.write, RIGHT)

    sent = await sent_to(answer, rate_per_s=100, duration_s=1.2)
    assert all(one.is_right for one in sent)
    slow = [one for one in sent if one.latency_s > 0.25]
    assert len(slow) >= 12, "half of the fifty that were due while it stood still"
    found = summary(sent, 100, 1.2)
    assert found["latency_ms"]["p99"] > 350 > found["latency_ms"]["p50"]


async def test_a_client_that_stood_still_counts_its_own_delay_too() -> None:
    begun = False

    def answer(number: int, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        if not begun:
            begun = True
            time.sleep(0.4)  # client and server share this thread
        writer.write(RIGHT)

    sent = await sent_to(answer, rate_per_s=100, duration_s=1)
    late = [one for one in sent if one.late_s > 0.2]
    assert len(late) >= 8
    assert all(one.latency_s >= one.late_s for one in late)


async def test_a_service_that_closes_its_connections_is_asked_over_new_ones() -> None:
    def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(RIGHT)
        writer.close()

    sent = await sent_to(answer, rate_per_s=40, duration_s=1)
    assert len(sent) > 20
    assert all(one.is_right for one in sent)


async def test_each_answer_is_counted_as_what_it_is() -> None:
    def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number % 5 == 4:
            return  # never
        writer.write((RIGHT, FULL, WRONG, b"HTTP/1.1 200 OK\r\n")[number % 5 % 4])
        if number % 5 == 3:
            writer.close()

    sent = await sent_to(answer, rate_per_s=60, duration_s=1, give_up_s=0.5)
    found = summary(sent, 60, 1)
    assert set(found["statuses"]) == {
        *("200", "429", "200 with a wrong picture", "connection broken", "given up"),
    }
    assert sum(found["statuses"].values()) == len(sent) == found["num_asked"]
    assert found["num_right"] == found["statuses"]["200"]
    assert (
        num_amiss({"stages": [found]}) == len(sent) - found["num_right"] - found["statuses"]["429"]
    )
    assert 0 < num_amiss({"stages": [found]})


async def test_a_service_that_is_not_there_is_a_broken_connection() -> None:
    sent = await send_stage(Target.at("http://127.0.0.1:9", None, ["heart"], 5), 30, 0.5, seed=1)
    found = summary(sent, 30, 0.5)
    assert set(found["statuses"]) == {"connection broken"}
    assert found["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    report = {"url": "http://x", "began": "now", "machine": {"cpu": "a", "num_cores": 1}}
    page = render(report | {"load_average": [0.0], "stages": [found]}, [sent])
    assert "connection broken" in page


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x/v1/generate"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadAddress, match="--url"):
        Target.at(url, None, ["heart"], 1)


def test_a_client_that_is_too_slow_says_so() -> None:
    late = [Sent(0.1 * n, 0.050, 0.060, 200, True, 1) for n in range(10)]
    assert "50 ms late" in str(client_warning(summary(late, 10, 1)))
    in_time = [Sent(0.1 * n, 0.001, 0.060, 200, True, 1) for n in range(10)]
    assert client_warning(summary(in_time, 10, 1)) is None


def test_the_command_measures_a_service_with_keys(repo_root: Path, tmp_path: Path) -> None:
    key, secret = make_key()
    keys_file = write_keys(tmp_path / "keys.json", key)
    out = tmp_path / "bench" / "load"
    with running_service(repo_root / "models" / "emoji", tmp_path, keys_file=keys_file) as service:
        command = [sys.executable, "-m", "tests.bench.open_loop", "--url", service.url]
        command += ["--rate", "5", "10", "--seconds", "1.5", "--out", str(out)]
        for environment, status in ((os.environ | {"ONESTEP_API_KEY": secret}, 0), (os.environ, 1)):
            done = subprocess.run(
                command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == status, done.stderr
            report = orjson.loads(out.with_suffix(".json").read_bytes())
            page = out.with_suffix(".html").read_text("utf-8")
            assert [stage["rate_per_s"] for stage in report["stages"]] == [5, 10]
            answers = {name for stage in report["stages"] for name in stage["statuses"]}
            assert answers == ({"200"} if status == 0 else {"401"})
            assert secret not in page + done.stdout + out.with_suffix(".json").read_text()
            assert page.count("<svg") == (6 if status == 0 else 2)
            # Nothing is fetched: no script, no picture, no style from elsewhere.
            assert not re.search(r"<(script|link|img|iframe)|@import|url\(|\bsrc=", page)
