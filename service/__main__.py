"""The command `onestep`.

Owns arguments, the choice of a process and the exit status: 0 after a drain, 1 when a part failed,
2 when the start was impossible.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from engines.errors import EnginesError
from service.commands import keys
from service.errors import StartError
from service.processes.api import serve_api
from service.processes.life import loop_factory
from service.processes.serve import serve
from service.processes.sockets import inherited, listen
from service.processes.worker import work
from service.settings import Settings, load_settings
from service.telemetry import configure_logging

EXIT_CANNOT_START = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "keys":
            return keys.run(arguments)
        settings = load_settings(
            host=getattr(arguments, "host", None),
            port=getattr(arguments, "port", None),
            model=arguments.model and tuple(arguments.model),
            allow_failed_check=getattr(arguments, "allow_failed_check", None),
        )
        configure_logging(settings.log_level)
        if arguments.command == "worker":
            return _run(work(settings))
        return _run_listening(arguments, settings)
    except (StartError, EnginesError) as error:
        print(f"onestep: {error}", file=sys.stderr)
        return EXIT_CANNOT_START


def _run_listening(arguments: argparse.Namespace, settings: Settings) -> int:
    process = serve if arguments.command == "serve" else serve_api
    fd = arguments.fd
    with listen(settings.host, settings.port) if fd is None else inherited(fd) as listener:
        return _run(process(settings, listener))


def _run(process: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(process)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestep", description="Pictures from text in one step.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "API, page and engine in one process"),
        ("api", "API and page; workers draw, and meet it in Redis"),
        ("worker", "an engine that draws what is queued in Redis"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--model",
            type=Path,
            action="append",
            help="bundle folder, once per model; the first is the default (default models/emoji)",
        )
        if name != "worker":
            command.add_argument("--host", help="address to listen on (default 127.0.0.1)")
            command.add_argument("--port", type=int, help="port, 0 for a free one (default 8000)")
            command.add_argument(
                "--fd", type=int, help="an inherited listening socket, in place of host and port"
            )
        if name != "api":
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
