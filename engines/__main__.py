"""onestep-engines: a trained model made servable, from a shell.

Owns the list of commands and their exit codes: 0 done, 1 pictures differ, 2 anything else that a
user can mend. A framework is imported only by the command that needs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.commands.models import add_export, add_pull
from engines.commands.plans import add_build
from engines.commands.quality import add_check, add_quantize, add_tune
from engines.commands.speed import add_bench
from engines.errors import EnginesError, ParityError

_EXIT_DIFFERENT = 1
_EXIT_UNUSABLE = 2
_EXIT_STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except ParityError as error:
        print(f"onestep-engines: {error}", file=sys.stderr)
        return _EXIT_DIFFERENT
    except EnginesError as error:
        print(f"onestep-engines: {error}", file=sys.stderr)
        return _EXIT_UNUSABLE
    except OSError as error:
        print(f"onestep-engines: {error.filename}: {error.strerror}", file=sys.stderr)
        return _EXIT_UNUSABLE
    except KeyboardInterrupt:
        print("onestep-engines: stopped", file=sys.stderr)
        return _EXIT_STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep-engines", description="From a trained model to something fast."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_pull, add_export, add_build, add_check, add_quantize, add_tune, add_bench):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
