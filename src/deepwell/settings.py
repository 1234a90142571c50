"""Where the values of options come from, and how one option is described to parsers and documentation.

A value is looked for on the command line, then in the environment (DEEPWELL_MAX_TOKENS), then in the command's table of
the TOML file ([serve]), then at that file's top level (for every command that loads a model and has the option), and
else is the default. Commands that load no model name theirs alone: DEEPWELL_TRAIN_CONTEXT, and only the table [train].
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from deepwell import bounds
from deepwell.errors import ConfigError
from deepwell.files import open_given
from deepwell.options import AccountsOptions, EngineOptions

ENV_PREFIX = "DEEPWELL_"
DEFAULT_CONFIG = "deepwell.toml"
MAX_CONFIG_BYTES = 1 << 20

Groups = Mapping[str, type[msgspec.Struct]]
"""The options of each command, by its name."""


class Option(msgspec.Struct, frozen=True):
    """One option as flags, parsers and documentation see it. `allowed` says in words which values it takes."""

    name: str
    env: str
    help: str
    allowed: str
    default: Any
    type: Any
    choices: tuple[str, ...] = ()
    switch: bool = False
    repeats: bool = False
    argument: bool = False
    main: bool = False
    once: bool = False
    commas: bool = False

    @property
    def shown_default(self) -> str:
        """The default as one would type it; empty if there is none to show."""
        if self.default in (None, "", ()) or self.switch:
            return ""
        return ",".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is msgspec.NODEFAULT


@cache
def options_of(command: str, group: type[msgspec.Struct]) -> tuple[Option, ...]:
    """The options of a command, in the order of its struct (shared ones first)."""
    described = inspect.type_info(group)
    assert isinstance(described, inspect.StructType)
    prefix = ENV_PREFIX if _shares(group) else f"{ENV_PREFIX}{command.upper()}_"
    return tuple(
        _option(field, plain.type, prefix)
        for field, plain in zip(described.fields, msgspec.structs.fields(group), strict=True)
    )


def resolve(
    groups: Groups,
    command: str,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config: Path | None = None,
) -> Any:
    """The options struct of `command`, from the given flags (by option name), the environment and a TOML file.

    `config` None reads deepwell.toml of the current folder if there is one. Raises ConfigError naming the source, the
    option and what is allowed.
    """
    group = groups[command]
    file = read_config(groups, config)
    values: dict[str, object] = {}
    for option in options_of(command, group):
        for source, value in _settings(command, option, flags, environ, file):
            values[option.name] = _converted(source, option, value)
            break
        else:
            if option.required:
                raise ConfigError(f"{command} needs {option.name.upper()}: {option.help}")
    return group(**values)


class ConfigFile(msgspec.Struct, frozen=True):
    """The content of a deepwell.toml: keys for every command that loads a model, and a table per command."""

    path: Path
    shared: dict[str, object] = {}
    tables: dict[str, dict[str, object]] = {}


def read_config(groups: Groups, path: Path | None) -> ConfigFile:
    """Read and check the keys of a TOML file; values are checked by the command that uses them."""
    chosen = path or Path(DEFAULT_CONFIG)
    if path is None and not chosen.is_file():
        return ConfigFile(chosen)
    try:
        with open_given(chosen) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{chosen} has more than the {MAX_CONFIG_BYTES >> 10} KiB allowed")
        content = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {chosen}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen} is not valid TOML: {error}") from None
    keys = {command: _keys(command, group) for command, group in groups.items()}
    everywhere = {key for command, group in groups.items() if _shares(group) for key in keys[command]}
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    shared = {name: value for name, value in content.items() if name not in tables}
    _check_names(f"{chosen}: table", tables, [command for command in keys if keys[command]])
    _check_names(f"{chosen}: key", shared, sorted(everywhere))
    for command, table in tables.items():
        _check_names(f"{chosen}: key of [{command}]", table, keys[command])
    return ConfigFile(chosen, shared, tables)


def _shares(group: type[msgspec.Struct]) -> bool:
    """Whether the command's options have the same names and meaning as those of other commands."""
    return issubclass(group, EngineOptions | AccountsOptions)


def _keys(command: str, group: type[msgspec.Struct]) -> list[str]:
    return [option.name for option in options_of(command, group) if not option.once]


def _check_names(where: str, given: Mapping[str, object], allowed: list[str]) -> None:
    for name in given:
        if name not in allowed:
            raise ConfigError(f"{where} {name!r} is unknown; allowed: {', '.join(allowed)}")


def _settings(
    command: str, option: Option, flags: Mapping[str, object], environ: Mapping[str, str], config: ConfigFile
) -> Iterator[tuple[str, object]]:
    """Every place that sets the option, the strongest first, with words for where it is."""
    if option.name in flags:
        given = flags[option.name]
        if option.commas and isinstance(given, str):
            given = given.split(",")
        yield option.name.upper() if option.argument else option.flag, given
    if option.once:
        return
    if option.env in environ:
        text = environ[option.env]
        yield f"environment variable {option.env}", text.split(",") if option.repeats or option.commas else text
    if option.name in config.tables.get(command, {}):
        yield f"{config.path}: [{command}] {option.name}", config.tables[command][option.name]
    if option.name in config.shared and option.env == ENV_PREFIX + option.name.upper():
        yield f"{config.path}: {option.name}", config.shared[option.name]


def _converted(source: str, option: Option, value: object) -> Any:
    if option.repeats and isinstance(value, str):
        value = [value]
    try:
        return msgspec.convert(value, option.type, strict=False, dec_hook=_path)
    except (msgspec.ValidationError, NotImplementedError):
        told = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        raise ConfigError(f"{source}: must be {option.allowed}, not {told!r}") from None


def _path(kind: type[Any], value: object) -> Path:
    if kind is not Path or not isinstance(value, str) or not value:
        raise NotImplementedError
    return Path(os.path.expanduser(value))


def _option(field: inspect.Field, annotated: Any, prefix: str) -> Option:
    meta = field.type
    assert isinstance(meta, inspect.Metadata), f"{field.name} has no help text"
    marks = meta.extra or {}
    kind = _inner(meta.type)
    return Option(
        name=field.name,
        env=prefix + field.name.upper(),
        help=(meta.extra_json_schema or {})["description"],
        allowed=_allowed(meta),
        default=field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
        type=annotated,
        choices=tuple(str(value) for value in kind.values) if isinstance(kind, inspect.LiteralType) else (),
        switch=isinstance(kind, inspect.BoolType),
        repeats=isinstance(kind, inspect.VarTupleType) and not marks.get("commas", False),
        argument=marks.get("argument", False),
        main=marks.get("main", False),
        once=marks.get("once", False),
        commas=marks.get("commas", False),
    )


def _inner(kind: inspect.Type) -> inspect.Type:
    """The type without its wrapping: metadata, and the None of an optional."""
    if isinstance(kind, inspect.Metadata):
        return _inner(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _inner(next(part for part in kind.types if not isinstance(part, inspect.NoneType)))
    return kind


def _allowed(kind: inspect.Type) -> str:
    """In words; those of a pattern are its title."""
    match kind:
        case inspect.Metadata(extra_json_schema={"title": str(words)}):
            return words
        case inspect.Metadata(type=inner):
            return _allowed(inner)
        case inspect.UnionType(types=parts):
            return _allowed(next(part for part in parts if not isinstance(part, inspect.NoneType)))
        case inspect.IntType():
            return "an integer" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case inspect.BoolType():
            return "true or false"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each {_allowed(item)}"
        case inspect.StrType(min_length=int(least), max_length=most):
            return f"a text of {least} to {most} characters" if most else "a text that is not empty"
        case inspect.CustomType():
            return "a path"
    return "a text"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    text = bounds.words(kind)
    return f" of {text}" if text.startswith("at least") else f" {text}" if text else ""
