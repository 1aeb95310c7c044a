"""Listening sockets and the servers behind them.

Owns how an application is put on a socket. Knows no application.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from service.errors import StartError
from service.http_protocol import BoundedHttp
from service.settings import Settings

_WILDCARD_HOSTS = {"0.0.0.0", "::", ""}


def listen(host: str, port: int, setting: str = "") -> socket.socket:
    """Bind before anything is loaded: a taken port must stop the start at once.

    Args:
        host: address to bind.
        port: 0 for a free one.
        setting: what the names of the two begin with in the environment; empty for options.

    Raises:
        StartError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        names = f"{setting}HOST and {setting}PORT" if setting else "--host and --port"
        raise StartError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another with {names}"
        ) from error


def inherited(fd: int) -> socket.socket:
    """A listening socket that whoever started this process has opened.

    With it a new process takes over from an old one and no connection is refused in between.

    Raises:
        StartError: there is no such socket.
    """
    try:
        listener = socket.socket(fileno=fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise StartError(
            f"--fd {fd} is no listening socket ({error}): pass one on from the process that starts "
            "this one"
        ) from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """Where a listener is reached from this machine."""
    host = "127.0.0.1" if host in _WILDCARD_HOSTS else host
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{listener.getsockname()[1]}"


def server_config(app: ASGIApp, settings: Settings, finish_s: float = 5) -> uvicorn.Config:
    """How the application is put on a socket; at its end, requests have `finish_s` to finish."""
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(finish_s),
        ws_max_size=settings.realtime_max_message_bytes,
        # Pictures are compressed already.
        ws_per_message_deflate=False,
    )


class Server(uvicorn.Server):
    """Leaves signals to the process: a drain answers new requests, so it must keep listening."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@contextlib.asynccontextmanager
async def answering(
    app: ASGIApp, listener: socket.socket, settings: Settings, finish_s: float = 5
) -> AsyncIterator[asyncio.Task[None]]:
    """Answer requests on a listener until the end of the block, and those in hand after it."""
    server = Server(server_config(app, settings, finish_s))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield serving
    finally:
        server.should_exit = True
        await serving
