"""Decoder processes: what they may do, and what is left when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from picture_files import (
    drawn,
    hostile_files,
    ordinary_files,
    png_that_claims,
    rgb,
    saved,
    see_through,
)
from PIL import Image

from service.errors import InvalidRequest, PictureTooLarge, ProblemError, QueueFull, status_of
from service.uploads.pool import PictureDecoders

MAX_PX = 16_000_000
SIZE = (48, 32)
GOOD = saved(drawn())
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@contextlib.asynccontextmanager
async def decoders(num: int = 1, **timeouts: float) -> AsyncIterator[PictureDecoders]:
    pool = PictureDecoders(MAX_PX, num, **timeouts)
    try:
        yield pool
    finally:
        await pool.close()


async def _works(pool: PictureDecoders) -> None:
    content = await pool.decode(GOOD, None, SIZE)
    assert (rgb(content, SIZE) == np.asarray(drawn())).all()


async def _stopped(pool: PictureDecoders) -> tuple[int, asyncio.Task[bytes]]:
    """A process that has a picture and does nothing about it."""
    await _works(pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(pool.decode(GOOD, None, SIZE))
    async with asyncio.timeout(20):
        while pool.pids:
            await asyncio.sleep(0.001)
    return pid, task


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_processes_start_when_needed_and_stay() -> None:
    async with decoders(2) as pool:
        assert pool.pids == []
        await _works(pool)
        (pid,) = pool.pids
        await asyncio.gather(*(_works(pool) for _ in range(8)))
        assert pid in pool.pids and len(pool.pids) == 2
        pids = pool.pids
        times_s = []
        for _ in range(20):
            started_s = time.perf_counter()
            await _works(pool)
            times_s.append(time.perf_counter() - started_s)
        assert pool.pids == pids
        assert min(times_s) < 0.01
    assert not any(_is_alive(pid) for pid in pids)


async def test_every_ordinary_picture_is_taken() -> None:
    async with decoders() as pool:
        for name, content in ordinary_files():
            try:
                assert len(await pool.decode(content, None, SIZE)) == 48 * 32 * 3
            except ProblemError as refusal:
                pytest.fail(f"{name}: {refusal.detail}")


async def test_a_mask_goes_the_same_way() -> None:
    async with decoders() as pool:
        mask = saved(see_through(drawn(), (24, 0, 48, 32)))
        image_HWC = rgb(await pool.decode(GOOD, mask, SIZE), SIZE)
        assert (image_HWC[:, :24, 3] == 255).all() and (image_HWC[:, 24:, 3] == 0).all()
        with pytest.raises(InvalidRequest, match="empty") as caught:
            await pool.decode(GOOD, b"", SIZE)
        assert caught.value.field == "mask"


async def test_hostile_files_are_refused_by_one_process_that_lives_on() -> None:
    async with decoders() as pool:
        await _works(pool)
        pids = pool.pids
        for name, content, code in hostile_files():
            with pytest.raises(ProblemError) as caught:
                await pool.decode(content, None, SIZE)
            assert status_of(caught.value).code == code, name
            assert caught.value.field == "image", name
        assert pool.pids == pids
        await _works(pool)
        with pytest.raises(PictureTooLarge) as refused:
            await pool.decode(png_that_claims(5000, 5000), None, SIZE)
        assert refused.value.allowed == {"max_px": MAX_PX}


async def test_one_that_was_killed_while_idle_is_replaced() -> None:
    async with decoders() as pool:
        await _works(pool)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        await _works(pool)
        assert pool.pids and pool.pids != [pid]


async def test_one_that_is_killed_over_a_picture_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with decoders() as pool:
        pid, task = await _stopped(pool)
        with caplog.at_level(logging.WARNING):
            os.kill(pid, signal.SIGKILL)
            assert (rgb(await task, SIZE) == np.asarray(drawn())).all()
        assert [record.message for record in caplog.records] == ["decoder_died"]
        assert pool.pids != [pid]
        await _works(pool)


async def test_a_picture_that_kills_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with decoders() as pool:
        start = pool._start
        started = []

        async def start_and_kill() -> asyncio.subprocess.Process:
            process = await start()
            started.append(process.pid)
            process.kill()
            return process

        monkeypatch.setattr(pool, "_start", start_and_kill)
        with pytest.raises(InvalidRequest, match="cannot be decoded"):
            await pool.decode(GOOD, None, SIZE)
        assert len(started) == 2 and pool.pids == []
        monkeypatch.setattr(pool, "_start", start)
        await _works(pool)


async def test_one_that_works_too_long_is_ended() -> None:
    async with decoders(decode_timeout_s=0.5) as pool:
        pid, task = await _stopped(pool)
        with pytest.raises(InvalidRequest, match="too long"):
            await task
        assert not _is_alive(pid)
    async with decoders() as pool:
        pid, task = await _stopped(pool)
        # What the limit on processor time does.
        os.kill(pid, signal.SIGXCPU)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(InvalidRequest, match="too long"):
            await task
        await _works(pool)


async def test_a_request_that_is_given_up_leaves_no_answer_behind() -> None:
    async with decoders() as pool:
        pid, task = await _stopped(pool)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not _is_alive(pid)
        await _works(pool)


async def test_who_waits_too_long_for_a_process_is_told_to_come_back() -> None:
    async with decoders(wait_timeout_s=0.1) as pool:
        pid, task = await _stopped(pool)
        with pytest.raises(QueueFull) as caught:
            await pool.decode(GOOD, None, SIZE)
        assert caught.value.retry_after_s
        os.kill(pid, signal.SIGCONT)
        await task
        await _works(pool)


@linux_only
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_decoder_knows_nothing_of_the_service(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    monkeypatch.setenv("SECRET_FOR_TEST", "abc")
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)

    async def look() -> None:
        async with decoders() as pool:
            await _works(pool)
            process = Path(f"/proc/{pool.pids[0]}")
            assert b"SECRET" not in (process / "environ").read_bytes()
            assert {path.name for path in (process / "fd").iterdir()} <= {"0", "1", "2", "3"}
            libraries = (process / "maps").read_text()
            assert "PIL" in libraries
            for name in ("onnxruntime", "torch", "numpy", "uvloop", "pydantic"):
                assert f"/{name}" not in libraries
            limits = (process / "limits").read_text()
            for line in ("Max core file size 0 0", "Max file size 0 0", "Max open files 4 4"):
                assert line in " ".join(limits.split())

    try:
        run(look())
    finally:
        os.close(inherited)


def _confined(program: str) -> subprocess.CompletedProcess[str]:
    setup = "from service.uploads import decoder\nfrom PIL import Image\nImage.preinit()\n"
    return subprocess.run(
        [sys.executable, "-c", setup + program], capture_output=True, text=True, timeout=60
    )


def test_no_code_of_another_format_is_reached(tmp_path: Path) -> None:
    for index, (_, content, _) in enumerate(hostile_files()):
        (tmp_path / str(index)).write_bytes(content)
    program = (
        "import sys, pathlib\n"
        f"for path in pathlib.Path({str(tmp_path)!r}).iterdir():\n"
        "    try: decoder.starting_picture(path.read_bytes(), None, (48, 32), 10**9)\n"
        "    except decoder.ProblemError: pass\n"
        "print([name for name in sys.modules if 'Fits' in name or 'IcnsImage' in name])\n"
    )
    assert _confined(program).stdout == "[]\n"


def test_memory_is_bounded() -> None:
    ran = _confined("decoder._confine(4096)\nbytearray(2**28)")
    assert ran.returncode == 1 and ran.stderr.strip().endswith("MemoryError")


def test_no_file_can_be_opened_or_written() -> None:
    ran = _confined("decoder._confine(4096)\na = open('/dev/null'); b = open('/dev/null')")
    assert ran.returncode == 1 and "Too many open files" in ran.stderr


def test_processor_time_is_bounded_for_each_picture_anew() -> None:
    program = (
        "import time\n"
        "for _ in range(2):\n"
        "    decoder._allow_cpu(2)\n"
        "    until = time.process_time() + 1.0\n"
        "    while time.process_time() < until: pass\n"
        "print('lived', flush=True)\n"
        "decoder._allow_cpu(1)\n"
        "while True: pass\n"
    )
    ran = _confined(program)
    assert ran.stdout == "lived\n"
    assert ran.returncode == -signal.SIGXCPU


def test_a_picture_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(saved(Image.new("RGB", (3900, 3900))))
    program = (
        f"content = open({str(path)!r}, 'rb').read()\n"
        "decoder._BASE_BYTES = 2**26\n"
        "decoder._confine(4096)\n"
        "decoder.starting_picture(content, None, (48, 32), 16_000_000)\n"
    )
    ran = _confined(program)
    assert "InvalidRequest: image takes too much memory to decode" in ran.stderr


def test_a_decoder_ends_with_its_service(repo_root: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from service.uploads.pool import PictureDecoders\n"
        "async def main():\n"
        "    pool = PictureDecoders(10**6, 1)\n"
        f"    await pool.decode(bytes.fromhex({GOOD.hex()!r}), None, (8, 8))\n"
        "    print(pool.pids[0], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    pid = int(ran.stdout)
    until_s = time.monotonic() + 20
    while _is_alive(pid) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not _is_alive(pid)
