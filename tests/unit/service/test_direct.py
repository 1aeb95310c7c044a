"""The short way: which routes take it, and that nobody can tell by the answer."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response

from service.direct import DirectRoutes


class Refused(Exception):
    """What the application has a handler for."""


def _answer(request: Request) -> Response:
    """FastAPI's router leaves itself in the scope of what it routes."""
    return Response("through FastAPI" if "router" in request.scope else "direct")


def _refuse() -> None:
    raise Refused


def _client() -> httpx.AsyncClient:
    router = APIRouter()

    @router.post("/plain")
    async def plain(request: Request) -> Response:
        return _answer(request)

    @router.post("/refusing")
    async def refusing(request: Request) -> Response:
        raise Refused

    @router.post("/named/{name}")
    async def named(request: Request) -> Response:
        return _answer(request)

    @router.post("/with-query")
    async def with_query(request: Request, number: int) -> Response:
        return _answer(request)

    @router.post("/guarded", dependencies=[Depends(_refuse)])
    async def guarded(request: Request) -> Response:
        return _answer(request)

    async def answer_refused(request: Request, error: Exception) -> Response:
        return Response(f"refused at {request.scope['route'].path}", status_code=418)

    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(Refused, answer_refused)
    app.add_middleware(DirectRoutes, application=app, routers=(router,))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/plain", 200, "direct"),
        ("/named/{name}", 200, "through FastAPI"),
        ("/with-query?number=1", 200, "through FastAPI"),
        ("/guarded", 418, "refused at /guarded"),
        ("/refusing", 418, "refused at /refusing"),
    ],
)
async def test_only_a_route_that_takes_the_request_alone_is_called_directly(
    path: str, status: int, text: str
) -> None:
    async with _client() as client:
        response = await client.post(path)
    assert (response.status_code, response.text) == (status, text)


async def test_other_methods_and_paths_are_fastapis_to_refuse() -> None:
    async with _client() as client:
        assert (await client.get("/plain")).status_code == 405
        assert (await client.post("/plain/")).status_code == 307
        assert (await client.post("/nothing")).status_code == 404
        assert (await client.post("/with-query?number=many")).status_code == 422
