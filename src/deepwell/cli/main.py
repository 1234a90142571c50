"""`deepwell COMMAND ...`: find the command, read its options, run it, and turn errors into one clear sentence."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from deepwell import __version__
from deepwell.cli.interrupts import EXIT_INTERRUPTED
from deepwell.cli.terminal import visible
from deepwell.errors import DeepwellError

EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Exit codes: 0 done, 1 not well, 2 wrong use or input, 130 Ctrl-C, 141 our reader left,
    143 a SIGTERM that the command does not handle."""
    if argv is None:
        # From the start: the first process of a container does not notice a signal that has no handler.
        signal.signal(signal.SIGTERM, _leave)
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except DeepwellError as error:
        print(f"deepwell: {visible(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except ImportError as error:
        if "_native" not in str(error):
            raise
        print(f"deepwell: the kernels do not load: {error}; `deepwell doctor` says what to do", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it a place to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"deepwell {__version__}")
        return 0
    # Imported here so that --version costs nothing.
    from deepwell.cli import parser
    from deepwell.cli.commands import GROUPS

    if args[:1] == ["help"] and args[1:]:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(parser.overview())
        return 0 if args else EXIT_USAGE
    command, rest = args[0], args[1:]
    if command not in GROUPS:
        print(f"deepwell: {command!r} is not a command; commands are {', '.join(GROUPS)}", file=sys.stderr)
        return EXIT_USAGE
    options = parser.read_options(command, rest, os.environ)
    code: int = import_module(f"deepwell.cli.{command}").run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
