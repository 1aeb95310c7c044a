"""What pages of other origins may do, headers on every answer, the documents, WebSockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from fastapi import WebSocket
from keys_fixtures import bearer, make_key, write_keys
from service_stack import Stack, listening, problem, running
from websockets.exceptions import InvalidStatus

from engines.pipeline import Pipeline
from service.app import create_admin_app, create_app
from service.routes.access import principal_of
from service.routes.context import AppContext

PAGE = "https://app.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_pages_of_other_origins_are_denied_unless_listed(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline) as stack:
        response = await stack.client.options("/v1/generate", headers=PREFLIGHT)
        assert response.status_code == 405
        drawn = await stack.draw({"origin": PAGE})
        for answer in (response, drawn):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_listed_origins_may_call_and_read_refusals(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys", make_key()[0])
    origins = f"{PAGE}, https://other.example:8443"
    async with running(bundle, pipeline, keys_file=path, cors_origins=origins) as stack:
        asked = await stack.client.options("/v1/generate", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in asked.headers
        response = await stack.draw({"origin": PAGE})
        problem(response, 401, "unauthorized")
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "retry-after" in response.headers["access-control-expose-headers"]
        foreign = await stack.draw({"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
        foreign = await stack.client.options(
            "/v1/generate", headers=PREFLIGHT | {"origin": "https://evil.example"}
        )
        assert foreign.status_code == 400


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/nothing", "/v1/models", "/docs", "/v1/images/none", "/metrics"]
)
async def test_every_answer_is_fenced_in_once(stack: Stack, path: str) -> None:
    response = await stack.client.get(path)
    for name, value in {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
    }.items():
        assert response.headers.get_list(name) == [value]


async def test_refusals_before_and_after_the_routes_are_fenced_in_too(
    bundle: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path) as stack:

        async def fail(jobs: object) -> None:
            raise RuntimeError("unforeseen")

        monkeypatch.setattr(stack.broker, "put", fail)
        answers = [await stack.draw(), await stack.draw(bearer(text))]
    assert [answer.status_code for answer in answers] == [401, 500]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_documents_come_from_this_host_alone(stack: Stack) -> None:
    page = await stack.client.get("/docs")
    assert page.status_code == 200
    addresses = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/"), address
        part = await stack.client.get(address)
        assert part.status_code == 200 and part.content, address
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert (await stack.client.get("/docs/redoc.standalone.js")).status_code == 404
    assert (await stack.client.get("/docs/..%2fcore.py")).status_code == 404


async def test_the_document_says_how_a_key_is_sent(stack: Stack) -> None:
    document = (await stack.client.get("/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    assert {"bearer": []} in document["security"]
    assert "priority" in str(document["paths"]["/v1/generate"])


async def test_the_page_can_be_switched_off_and_the_document_stays(
    bundle: Path, pipeline: Pipeline
) -> None:
    async with running(bundle, pipeline, docs=False) as stack:
        assert (await stack.client.get("/docs")).status_code == 404
        assert (await stack.client.get("/docs/swagger-ui.css")).status_code == 404
        assert (await stack.client.get("/openapi.json")).status_code == 200


async def test_metrics_leave_the_main_port_for_the_operators_own(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path, admin_port=0) as stack:
        assert (await stack.client.get("/metrics", headers=bearer(text))).status_code == 404
        context: AppContext = stack.app.state.context
        stack.app = create_admin_app(context)
        async with listening(stack) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as admin:
                metrics = await admin.get("/metrics")
                assert metrics.status_code == 200
                assert "onestep_ready 1.0" in metrics.text
                assert metrics.headers["x-content-type-options"] == "nosniff"
                assert (await admin.get("/readyz")).status_code == 200
                for absent in ("/v1/generate", "/v1/models", "/", "/docs", "/openapi.json"):
                    assert (await admin.get(absent)).status_code == 404


async def test_metrics_on_the_main_port_need_a_key_where_keys_are_asked(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path) as stack:
        assert (await stack.client.get("/metrics")).status_code == 401
        assert (await stack.client.get("/metrics", headers=bearer(text))).status_code == 200


@asynccontextmanager
async def _sockets(stack: Stack) -> AsyncIterator[str]:
    """A WebSocket that tells its owner and what it was offered, behind a real server."""
    app = create_app(stack.app.state.context)

    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(
            {"owner": principal_of(websocket).owner, "offered": websocket.scope["subprotocols"]}
        )
        await websocket.close()

    app.add_api_websocket_route("/tell", tell)
    stack.app = app
    async with listening(stack) as port:
        yield f"ws://127.0.0.1:{port}/tell"


async def _told(url: str, **options: Any) -> tuple[str, str | None]:
    async with asyncio.timeout(10), websockets.connect(url, **options) as socket:
        return str(await socket.recv()), socket.subprotocol


async def _status(url: str, **options: Any) -> tuple[int, bytes]:
    with pytest.raises(InvalidStatus) as caught:
        await _told(url, **options)
    response = caught.value.response
    return response.status_code, bytes(response.body or b"")


async def test_a_websocket_takes_its_key_as_header_or_subprotocol(
    bundle: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    key, text = make_key()
    path = write_keys(tmp_path / "keys", key)
    async with running(bundle, pipeline, keys_file=path) as stack, _sockets(stack) as url:
        told, picked = await _told(url, additional_headers=bearer(text))
        assert key.id in told and picked is None
        told, picked = await _told(url, subprotocols=["onestep", f"key.{text}"])
        # A browser needs one to be picked, and the key must not be sent back.
        assert key.id in told and picked == "onestep"
        assert text not in told
        wrong: tuple[dict[str, Any], ...] = (
            {},
            {"subprotocols": ["onestep"]},
            {"subprotocols": ["onestep", f"key.{text}x"]},
            {"subprotocols": ["onestep", text]},
            {"additional_headers": bearer("none")},
        )
        for options in wrong:
            status, body = await _status(url, **options)
            assert status == 401 and b"unauthorized" in body
        assert (await _status(f"{url}?key={text}"))[0] == 401


async def test_a_foreign_page_opens_no_websocket(bundle: Path, pipeline: Pipeline) -> None:
    async with running(bundle, pipeline, cors_origins=PAGE) as stack, _sockets(stack) as url:
        own = url.removesuffix("/tell").replace("ws://", "http://")
        for origin in (None, own, PAGE):
            assert '"owner":""' in (await _told(url, origin=origin))[0]
        for origin in ("https://evil.example", "null", own + ".evil.example"):
            status, body = await _status(url, origin=origin)
            assert status == 403 and b"cors_origins" in body
