"""Command-line parsers and help texts, made from the structs of options.py."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from deepwell.cli.commands import GROUPS
from deepwell.errors import ConfigError
from deepwell.settings import DEFAULT_CONFIG, ENV_PREFIX, Option, options_of, resolve

CONFIG_ENV = ENV_PREFIX + "CONFIG"
CONFIG_HELP = "TOML file with options"


def read_options(command: str, args: Sequence[str], environ: Mapping[str, str]) -> Any:
    """The options struct of `command`. Raises ConfigError for wrong ones."""
    parser = build(command)
    known, unknown = parser.parse_known_intermixed_args(args)
    if unknown:
        raise ConfigError(_unknown(command, unknown))
    flags = vars(known)
    config = flags.pop("config", environ.get(CONFIG_ENV))
    _give_main(flags, options_of(command, GROUPS[command]))
    return resolve(GROUPS, command, flags, environ, Path(config) if config else None)


def _unknown(command: str, given: Sequence[str]) -> str:
    """What to say of arguments that a command has no use for."""
    options = options_of(command, GROUPS[command])
    more = f"`deepwell {command} --help` lists what it takes"
    if flag := next((text.partition("=")[0] for text in given if text.startswith("-")), None):
        flags = [option.flag for option in options if not option.argument]
        return f"{flag} is no option of {command}; {did_you_mean(flag, flags)}{more}"
    return f"{given[0]!r} is one argument too many for {command}; quotes make one of several words; {more}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A question that names what is spelled like `word`, with a space behind it; empty if nothing is."""
    close = get_close_matches(word, list(words), 2, 0.7)
    return f"did you mean {' or '.join(close)}? " if close else ""


class _Parser(ArgumentParser):
    """One that says what is wrong in a sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` lists what it takes")


def overview() -> str:
    """What `deepwell --help` prints."""
    width = max(map(len, GROUPS)) + 2
    commands = "\n".join(f"  {name:{width}}{summary(group)}" for name, group in GROUPS.items())
    return (
        "usage: deepwell COMMAND [OPTIONS]\n\n"
        "Train, serve and measure DeepSeek-style language models on hardware you own.\n\n"
        f"commands:\n{commands}\n\n"
        "examples:\n"
        "  deepwell serve                        answer on http://127.0.0.1:8000\n"
        "  deepwell chat SmolLM2-135M-Instruct   talk in the terminal; model.gguf, ./folder and ORG/NAME work too\n"
        '  deepwell generate "def fibonacci(n):" continue a text\n'
        "  deepwell doctor                       what this machine offers\n\n"
        "deepwell COMMAND --help explains a command; deepwell --version says the version."
    )


def summary(group: type[msgspec.Struct]) -> str:
    return cleandoc(group.__doc__ or "").splitlines()[0].rstrip(".")


def details(group: type[msgspec.Struct]) -> str:
    """The docstring below its first line: examples and keys."""
    return "\n".join(cleandoc(group.__doc__ or "").splitlines()[1:]).strip()


def build(command: str) -> ArgumentParser:
    """A parser that leaves every value as text and every option not given out of its result."""
    group = GROUPS[command]
    options = options_of(command, group)
    parser = _Parser(
        prog=f"deepwell {command}",
        description=summary(group) + ".",
        epilog=details(group) + (_sources(options) if configurable(options) else ""),
        formatter_class=RawDescriptionHelpFormatter,
        argument_default=SUPPRESS,
        allow_abbrev=False,
    )
    for option in options:
        if option.argument:
            _add_argument(parser, option)
        else:
            _add_flag(parser, option)
    if configurable(options):
        parser.add_argument("--config", metavar="PATH", help=f"{CONFIG_HELP} [{DEFAULT_CONFIG}, if it exists]")
    return parser


def configurable(options: Sequence[Option]) -> bool:
    """Whether a command has options that a TOML file may set, and therefore --config."""
    return any(not option.once for option in options)


def _give_main(flags: dict[str, object], options: Sequence[Option]) -> None:
    """One argument alone is the main one."""
    arguments = [option.name for option in options if option.argument]
    main = next((option.name for option in options if option.main), None)
    if main and main not in flags and arguments[0] in flags:
        flags[main] = flags.pop(arguments[0])


def placeholder(option: Option) -> str:
    """What stands for the value in a usage line."""
    if option.choices:
        return "|".join(option.choices)
    if option.commas:
        return "A,B"
    word = option.allowed.split()[1] if option.allowed.startswith("a") else option.allowed
    return {"integer": "N", "number": "X", "path": "PATH"}.get(word, "TEXT")


def _sources(options: Sequence[Option]) -> str:
    example = next(option.env for option in options if not (option.once or option.argument))
    return f"\n\nOptions can also be set in the environment ({example}) or in {DEFAULT_CONFIG}: see docs/cli.md."


def _add_argument(parser: ArgumentParser, option: Option) -> None:
    parser.add_argument(
        option.name,
        metavar=option.name.upper(),
        nargs=None if option.required else "?",
        help=_help(option),
    )


def _add_flag(parser: ArgumentParser, option: Option) -> None:
    if option.switch:
        parser.add_argument(option.flag, dest=option.name, action="store_true", help=_help(option))
        return
    parser.add_argument(
        option.flag,
        dest=option.name,
        metavar=placeholder(option),
        action="append" if option.repeats else "store",
        help=_help(option),
    )


def _help(option: Option) -> str:
    shown = "" if option.required else option.shown_default
    return (option.help.rstrip(".") + (f" [{shown}]" if shown else "")).replace("%", "%%")
