"""`deepwell COMMAND ...`: find the command, read its options, run it, and turn errors into one clear sentence."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
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
        _check_streams()
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
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        _drop_output()
        place = error.filename if isinstance(error.filename, str) else "cannot read or write"
        print(f"deepwell: {visible(place)}: {error.strerror or error}", file=sys.stderr)
        return EXIT_USAGE
    except MemoryError:
        print("deepwell: there is not enough memory; `deepwell doctor` shows the limits on it", file=sys.stderr)
        return EXIT_USAGE


def _check_streams() -> None:
    """Open what the shell has closed: its number would be that of the next file, and what is printed would land there.

    DeepwellError if there is no place for what is printed.
    """
    silent = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if silent:
        raise DeepwellError("standard output is closed; to drop what is printed, send it to /dev/null")


def _drop_output() -> None:
    """Python flushes stdout once more at exit; give it a place to write to."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        hint = parser.did_you_mean(command, GROUPS)
        print(f"deepwell: {command!r} is not a command; {hint}commands are {', '.join(GROUPS)}", file=sys.stderr)
        return EXIT_USAGE
    options = parser.read_options(command, rest, os.environ)
    code: int = import_module(f"deepwell.cli.{command}").run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
