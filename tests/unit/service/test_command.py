"""How the command ends: what a drain returns, and the line that it prints."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket

import pytest
from service_fixtures import make_limits

from service.processes.life import EXIT_FAILED, drain
from service.processes.serve import announce
from service.processes.sockets import address_of


async def test_a_drain_that_finishes_is_a_success() -> None:
    assert await drain(asyncio.create_task(asyncio.sleep(0)), timeout_s=5) == 0


async def test_a_worker_that_failed_is_a_failure() -> None:
    async def fail() -> None:
        raise RuntimeError("worker")

    assert await drain(asyncio.create_task(fail()), timeout_s=5) == EXIT_FAILED


async def test_a_drain_that_hangs_is_given_up() -> None:
    working = asyncio.create_task(asyncio.sleep(60))
    assert await drain(working, timeout_s=0.01) == EXIT_FAILED
    working.cancel()


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]")],
)
def test_the_printed_address_can_be_opened(
    host: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        announce(make_limits(), address_of(listener, host))
    assert f"page  http://{shown}:{port}/\n" in capsys.readouterr().out


def test_the_printed_prompt_fits_the_model_and_the_shell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples = ("far too many words for a model like this", "a bird's nest", 'a "q"', "a red heart")
    announce(make_limits(examples=examples), "http://127.0.0.1:8000")
    printed = re.search(r"curl +(curl .*)\n", capsys.readouterr().out)
    assert printed is not None
    arguments = shlex.split(printed[1])
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert body == {"prompt": "a red heart", "seed": 7}
