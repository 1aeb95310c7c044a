"""An API process dies or drains with a job in hand; the job and its webhook go on elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
from fleet import Fleet, running_fleet
from standardwebhooks import Webhook
from webhook_receiver import SECRET, receiving

KEY = {"idempotency-key": "kept"}


def _jobs(fleet: Fleet, number: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{fleet.ports[number]}", timeout=60)


async def test_a_killed_process_leaves_its_jobs_and_webhooks_to_another(
    bundle: Path, tmp_path: Path
) -> None:
    async with receiving() as receiver:
        settings: dict[str, Any] = {
            "webhooks": True,
            "webhook_secrets": SECRET,
            "webhook_hosts": f"127.0.0.1:{receiver.port}",
            "webhook_allow_http": True,
        }
        with running_fleet(bundle, tmp_path, num_apis=2, num_workers=0, **settings) as fleet:
            body = {"prompt": "heart", "webhook": f"http://127.0.0.1:{receiver.port}/hook"}
            async with _jobs(fleet, 0) as first:
                accepted = await first.post("/v1/jobs", json=body, headers=KEY)
                assert accepted.status_code == 202, accepted.text
            os.kill(fleet.apis[0].pid, signal.SIGKILL)
            fleet.apis.pop(0).wait(10)
            fleet.start_worker()
            async with _jobs(fleet, 1) as second:
                again = await second.post("/v1/jobs", json=body, headers=KEY)
                assert again.headers["idempotent-replayed"] == "true"
                assert again.json()["id"] == accepted.json()["id"]
                async with asyncio.timeout(90):
                    while not receiver.received:
                        await asyncio.sleep(0.1)
                (received,) = receiver.received
                event: Any = Webhook(SECRET).verify(received.body, received.headers)
                assert event["data"]["id"] == accepted.json()["id"]
                (picture,) = event["data"]["pictures"]
                assert picture["seed"] == accepted.json()["pictures"][0]["seed"]
                assert (await second.get(picture["url"])).status_code == 200


async def test_a_drain_waits_for_no_job_that_nobody_waits_for(bundle: Path, tmp_path: Path) -> None:
    with running_fleet(bundle, tmp_path, num_apis=1, num_workers=0) as fleet:
        async with _jobs(fleet, 0) as client:
            accepted = await client.post("/v1/jobs", json={"prompt": "heart"})
            assert accepted.status_code == 202
            waiting = asyncio.create_task(client.post("/v1/generate", json={"prompt": "heart"}))
            await asyncio.sleep(0.5)
            fleet.apis[0].send_signal(signal.SIGTERM)
            await asyncio.sleep(8)  # longer than open connections are given at the end
            assert fleet.apis[0].poll() is None, "somebody waits for a picture"
            waiting.cancel()  # who leaves waits no more
            await asyncio.gather(waiting, return_exceptions=True)
            started_s = time.monotonic()
            assert await asyncio.to_thread(fleet.apis[0].wait, 60) == 0
            assert time.monotonic() - started_s < 15
