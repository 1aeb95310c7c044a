"""What several commands ask for and say.

Owns arguments that commands share, and how a command's framework is imported: when it runs, so that
the others start without it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

from engines.errors import BackendError


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle that a command works on."""
    parser.add_argument("bundle", type=Path, help="bundle folder, the one with model.json")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """How many threads a CPU backend takes."""
    parser.add_argument("--threads", type=count, help="default: the runtime's own choice")


def count(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: it is smaller.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def import_framework(name: str) -> Any:
    """Import a module that needs the training packages.

    Raises:
        BackendError: they are missing; names the first one and the remedy.
    """
    try:
        module = importlib.import_module(name)
        loading = importlib.import_module("transformers.utils.logging")
    except ImportError as error:
        raise BackendError(
            f"this command needs {error.name}: pip install 'onestep[distill]'"
        ) from error
    # The commands report progress themselves; the frameworks' bars and notes would bury it.
    loading.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return module


def report(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
