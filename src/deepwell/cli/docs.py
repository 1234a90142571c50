"""docs/cli.md from the option structs: `python -m deepwell.cli.docs > docs/cli.md` (or `make docs`)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from deepwell.cli.commands import GROUPS
from deepwell.cli.parser import CONFIG_ENV, details, summary
from deepwell.settings import DEFAULT_CONFIG, Option, options_of

_INTRODUCTION = f"""\
# The command line

This page is made from `src/deepwell/options.py` by `make docs`; do not edit it.

An option is looked for on the command line, then in the environment (`DEEPWELL_MAX_TOKENS`), then in a TOML file, and
else has its default. The TOML file is `{DEFAULT_CONFIG}` in the current folder, or the one named by `--config` or
`{CONFIG_ENV}`. Its top level holds for every command that loads a model, a table for one command:

```toml
threads = 4

[serve]
port = 9000
dtype = "int8"
```

A value that is not allowed ends the command with exit code 2 and a sentence that names the source, the option and what
is allowed. A list in the environment is separated by commas."""


def render() -> str:
    """The whole page."""
    return "\n\n".join([_INTRODUCTION, *(_section(command, group) for command, group in GROUPS.items())]) + "\n"


def _section(command: str, group: type[msgspec.Struct]) -> str:
    table = ["| Option | Allowed | Default | Environment, TOML key | Meaning |", "|---|---|---|---|---|"]
    table += ["| " + " | ".join(_cells(option)) + " |" for option in options_of(command, group)]
    return f"## deepwell {command}\n\n{summary(group)}.\n\n```\n{details(group)}\n```\n\n" + "\n".join(table)


def _cells(option: Option) -> Iterator[str]:
    yield f"`{option.name.upper() if option.argument else option.flag}`"
    yield option.allowed
    shown = str(option.default) if option.switch else option.shown_default
    yield "required" if option.required else f"`{shown}`" if shown else ""
    yield "" if option.once else f"`{option.env}`, `{option.name}`"
    yield option.help


if __name__ == "__main__":
    print(render(), end="")
