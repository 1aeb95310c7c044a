"""The command `onestep`.

Owns the joining of settings, bundle, broker, worker and application in one process, its signals
and its exit status: 0 after a drain, 1 when a part failed, 2 when the start was impossible.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from engines.errors import EnginesError
from engines.pipeline import Pipeline
from engines.spec import ModelSpec
from engines.tokenizer import Tokenizer
from service.app import create_admin_app, create_app
from service.brokers.base import Broker
from service.brokers.memory import MemoryBroker
from service.commands import keys
from service.errors import QueueUnavailable, StartError
from service.http_protocol import BoundedHttp
from service.jobs import FailureReason
from service.routes.context import AppContext, Phase, Readiness
from service.schemas import ModelLimits
from service.settings import Settings, load_settings
from service.telemetry import Telemetry, configure_logging, log_event
from service.worker import Worker, WorkerOptions

EXIT_FAILED = 1
EXIT_CANNOT_START = 2
# What a drain may take beyond the last accepted request's deadline.
DRAIN_MARGIN_S = 5.0
SWEEP_S = 1.0
_WILDCARD_HOSTS = {"0.0.0.0", "::", ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "keys":
            return keys.run(arguments)
        settings = load_settings(
            host=arguments.host,
            port=arguments.port,
            model=arguments.model,
            allow_failed_check=arguments.allow_failed_check,
        )
        configure_logging(settings.log_level)
        limits = load_limits(settings.model)
        with (
            _listen(settings.host, settings.port) as listener,
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            return runner.run(serve(settings, limits, listener))
    except (StartError, EnginesError) as error:
        print(f"onestep: {error}", file=sys.stderr)
        return EXIT_CANNOT_START


def load_limits(bundle: Path) -> ModelLimits:
    """What a bundle's model accepts.

    Raises:
        BundleError: a file is missing or damaged.
    """
    spec = ModelSpec.load(bundle)
    spec.verify(bundle)
    tokenizer = Tokenizer.load(bundle, spec)
    return ModelLimits(
        name=spec.name,
        description=spec.description,
        license=spec.license,
        sizes_px=spec.sizes_px,
        max_steps=spec.max_steps,
        max_prompt_chars=spec.text.max_prompt_chars,
        max_tokens=spec.text.max_tokens,
        count_tokens=tokenizer.num_tokens,
        examples=spec.examples,
        styles=spec.styles,
        created=int((bundle / "model.json").stat().st_mtime),
        can_start_from_image="encode" in spec.stages,
        timesteps=spec.student_timesteps[spec.max_steps],
        num_train_timesteps=spec.schedule.num_train_timesteps,
    )


async def serve(settings: Settings, limits: ModelLimits, listener: socket.socket) -> int:
    """Listen at once, load the model, serve until a signal, drain.

    Raises:
        EnginesError: the model cannot be loaded.
    """
    telemetry = Telemetry()
    broker = MemoryBroker(settings.max_queue_depth, max_kept_bytes=settings.max_kept_bytes)
    readiness = Readiness(telemetry)
    worker = Worker(
        broker,
        {
            limits.name: lambda: Pipeline.load(
                settings.model,
                backend=settings.backend,
                num_threads=settings.num_threads,
                allow_failed_check=settings.allow_failed_check,
            )
        },
        telemetry,
        WorkerOptions(settings.max_batch_size, settings.num_encode_threads),
    )
    context = AppContext(settings, limits, broker, telemetry, readiness)
    stop = asyncio.Event()
    _on_signals(stop)
    async with (
        _answering(create_app(context), listener, settings) as serving,
        _answering_operators(context),
        _sweeping(broker, telemetry),
    ):
        await worker.start()
        readiness.set(Phase.READY, "")
        _announce(settings, limits, listener)
        working = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        readiness.set(Phase.DRAINING, "the service is shutting down")
        await broker.close()
        return await _drain(working, settings.deadline_s + DRAIN_MARGIN_S)


@contextlib.asynccontextmanager
async def _answering(
    app: ASGIApp, listener: socket.socket, settings: Settings
) -> AsyncIterator[asyncio.Task[None]]:
    """Answer requests on a listener until the end of the block."""
    server = _Server(server_config(app, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield serving
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def _sweeping(broker: Broker, telemetry: Telemetry) -> AsyncIterator[None]:
    """End what is overdue and show how deep the queue is, until the end of the block."""

    async def sweep_forever() -> None:
        while True:
            with contextlib.suppress(QueueUnavailable):
                depth = await broker.sweep()
                telemetry.queue_depth.set(depth.num_jobs)
                telemetry.queue_oldest_age.set(depth.oldest_age_s)
                telemetry.failed.labels(FailureReason.EXPIRED).inc(depth.num_expired)
            await asyncio.sleep(SWEEP_S)

    task = asyncio.create_task(sweep_forever())
    try:
        yield
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def _answering_operators(context: AppContext) -> AsyncIterator[None]:
    """Answer on the operators' own port, where one is set."""
    settings = context.settings
    if settings.admin_port is None:
        yield
        return
    with _listen(settings.admin_host, settings.admin_port, "ONESTEP_ADMIN_") as listener:
        async with _answering(create_admin_app(context), listener, settings):
            log_event("metrics_served", host=settings.admin_host, port=listener.getsockname()[1])
            yield


def server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How the application is put on a socket."""
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        ws_max_size=settings.realtime_max_message_bytes,
        # Pictures are compressed already.
        ws_per_message_deflate=False,
    )


async def _drain(working: asyncio.Task[None], timeout_s: float) -> int:
    """Wait until every accepted picture has been delivered."""
    log_event("draining")
    await asyncio.wait({working}, timeout=timeout_s)
    if not working.done():
        log_event("drain_timed_out", level=logging.ERROR, timeout_s=timeout_s)
        return EXIT_FAILED
    if (error := working.exception()) is not None:
        log_event("worker_failed", level=logging.ERROR, exc=error)
        return EXIT_FAILED
    log_event("drained")
    return 0


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: a drain answers new requests, so it must keep listening."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _on_signals(stop: asyncio.Event) -> None:
    """The first signal asks for a drain, a second one ends the process at once."""

    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _listen(host: str, port: int, setting: str = "") -> socket.socket:
    """Bind before anything is loaded: a taken port must stop the start at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        names = f"{setting}HOST and {setting}PORT" if setting else "--host and --port"
        raise StartError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another with {names}"
        ) from error


def _announce(settings: Settings, limits: ModelLimits, listener: socket.socket) -> None:
    """Print where the page is and a line that draws a picture."""
    host = "127.0.0.1" if settings.host in _WILDCARD_HOSTS else settings.host
    host = f"[{host}]" if ":" in host else host
    address = f"http://{host}:{listener.getsockname()[1]}"
    # The line must work as it stands, in a shell and with this model.
    fitting = [
        prompt
        for prompt in (*limits.examples, "a red heart")
        if limits.count_tokens(prompt) <= limits.max_tokens and not set(prompt) & set("'\"\\")
    ]
    body = f'{{"prompt": "{fitting[0] if fitting else "hi"}", "seed": 7}}'
    print(
        f"\nonestep serves {limits.name}\n"
        f"  page  {address}/\n"
        f"  curl  curl -sS {address}/v1/generate -H 'Accept: image/png' "
        f"-H 'Content-Type: application/json' -d '{body}' -o picture.png\n",
        flush=True,
    )


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where it exists (it has no Windows build), else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestep", description="Pictures from text in one step.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="API, page and engine in one process")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=int, help="port, 0 for a free one (default 8000)")
    command.add_argument("--model", type=Path, help="bundle folder (default models/emoji)")
    command.add_argument(
        "--allow-failed-check",
        action="store_true",
        default=None,
        help="serve a bundle whose check failed or is of other graphs",
    )
    keys.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
