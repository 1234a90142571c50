"""Options: one source, four places to set them, and errors that say which place is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deepwell.cli.commands import GROUPS
from deepwell.errors import ConfigError
from deepwell.options import EngineOptions, ServeOptions
from deepwell.settings import options_of, resolve
from deepwell.train.config import TrainConfig


def toml(folder: Path, text: str) -> Path:
    path = folder / "options.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = resolve(GROUPS, "serve", {}, {})
    assert isinstance(options, ServeOptions)
    assert (options.host, options.port, options.model, options.dtype) == ("127.0.0.1", 8000, None, "auto")


def test_flag_beats_environment_beats_table_beats_top_level_beats_default(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1\nthreads = 1\ndtype = 'int8'\ncontext = 11\n[serve]\nport = 2\nthreads = 2\n")
    environ = {"DEEPWELL_PORT": "3", "DEEPWELL_THREADS": "3", "HOME": "/"}
    options = resolve(GROUPS, "serve", {"port": "4"}, environ, config)
    assert options.port == 4, "flag"
    assert options.threads == 3, "environment"
    assert resolve(GROUPS, "serve", {}, {}, config).port == 2, "table of the command"
    assert options.dtype == "int8", "top level"
    assert options.host == "127.0.0.1", "default"
    assert resolve(GROUPS, "generate", {"prompt": "x"}, {}, config).threads == 1, "a table is for its own command only"


def test_the_toml_file_of_the_current_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deepwell.toml").write_text("[serve]\nhost = '0.0.0.0'\n")
    assert resolve(GROUPS, "serve", {}, {}).host == "0.0.0.0"


def test_types_are_converted_from_text() -> None:
    environ = {"DEEPWELL_TEMPERATURE": "0.5", "DEEPWELL_STOP": "a,b", "DEEPWELL_MODEL": "~/models/x"}
    options = resolve(GROUPS, "generate", {"prompt": "x", "json": True, "seed": "7"}, environ)
    assert (options.temperature, options.stop, options.seed, options.json) == (0.5, ("a", "b"), 7, True)
    assert options.model == Path("~/models/x").expanduser()


@pytest.mark.parametrize(
    ("flags", "environ", "text", "said"),
    [
        ({"port": "many"}, {}, "", ["--port", "an integer from 0 to 65535", "'many'"]),
        ({"port": "65536"}, {}, "", ["--port", "an integer from 0 to 65535"]),
        ({"port": "-1"}, {}, "", ["--port"]),
        ({"model": ""}, {}, "", ["MODEL", "a path"]),
        ({"base_path": "a b"}, {}, "", ["--base-path", "the path of an address, such as /deepwell", "'a b'"]),
        ({"name": [""]}, {}, "", ["--name", "each a text that is not empty"]),
        ({"allow_origin": ["x"]}, {}, "", ["--allow-origin", "each a site such as https://chat.example", "'x'"]),
        (
            {},
            {"DEEPWELL_PORT": "tcp://10.0.0.1:80"},
            "",
            ["environment variable DEEPWELL_PORT", "an integer", "tcp://"],
        ),
        ({}, {"DEEPWELL_DTYPE": "int3"}, "", ["DEEPWELL_DTYPE", "auto", "float32", "bfloat16", "int8", "int4"]),
        ({}, {}, "threads = -1", ["options.toml: threads", "an integer of at least 0"]),
        ({}, {}, "[serve]\nthreads = 1.5", ["options.toml: [serve] threads", "an integer of at least 0"]),
        ({}, {}, "[serve]\nhost = 5", ["[serve] host", "text"]),
        ({}, {}, "prot = 1", ["options.toml", "'prot'", "unknown", "port"]),
        ({}, {}, "[serve]\ntemperature = 1", ["[serve]", "'temperature'", "unknown", "port"]),
        ({}, {}, "[srve]\nport = 1", ["'srve'", "unknown", "serve"]),
        ({}, {}, "json = true", ["'json'", "unknown"]),
        ({}, {}, "port = ", ["options.toml", "not valid TOML"]),
    ],
)
def test_errors_name_the_source_the_option_and_what_is_allowed(
    tmp_path: Path, flags: dict[str, object], environ: dict[str, str], text: str, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(GROUPS, "serve", flags, environ, toml(tmp_path, text))
    assert all(part in str(caught.value) for part in said), str(caught.value)


@pytest.mark.parametrize("text", ["nan", "-1", "2.1", "inf", "warm"])
def test_numbers_outside_their_bounds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--temperature: must be a number from 0 to 2, not"):
        resolve(GROUPS, "generate", {"prompt": "x", "temperature": text}, {})


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("chat", {"stop": ["a", ""]}, "--stop: must be a list, each a text of 1 to 1024 characters, not 'a,'"),
        ("bench", {"measure": "load,bogus"}, "--measure: must be a list, each one of .*, not 'load,bogus'"),
        ("bench", {"streams": "1,x"}, "--streams: must be a list, each an integer from 1 to 512, not '1,x'"),
    ],
)
def test_lists_are_checked_before_anything_is_loaded_and_shown_as_they_were_typed(
    command: str, flags: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        resolve(GROUPS, command, flags, {})


def test_zero_is_what_messages_say_it_is() -> None:
    """Messages about threads and context offer 0 for the default, so it can be said."""
    options = resolve(GROUPS, "serve", {"threads": "0", "context": "0"}, {})
    assert (options.threads, options.context) == (0, 0) == (EngineOptions().threads, EngineOptions().context)


def test_a_command_that_loads_no_model_has_names_of_its_own(tmp_path: Path) -> None:
    config = toml(tmp_path, "context = 4096\n[train]\nseed = 5\n")
    environ = {"DEEPWELL_CONTEXT": "8192", "DEEPWELL_TRAIN_TOKENS": "1000"}
    options = resolve(GROUPS, "train", {}, environ, config)
    assert (options.context, options.tokens, options.seed) == (TrainConfig().context, 1000, 5)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        resolve(GROUPS, "serve", {}, {}, tmp_path / "none.toml")


def test_a_config_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot read /dev/zero: is no regular file"):
        resolve(GROUPS, "serve", {}, {}, Path("/dev/zero"))


def test_a_config_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML"):
        resolve(GROUPS, "serve", {}, {}, path)


def test_a_required_argument_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="convert needs SOURCE"):
        resolve(GROUPS, "convert", {}, {})


def test_what_belongs_to_one_call_is_not_taken_from_the_environment() -> None:
    assert resolve(GROUPS, "generate", {"prompt": "x"}, {"DEEPWELL_JSON": "true", "DEEPWELL_PROMPT": "y"}).json is False


@pytest.mark.parametrize("command", GROUPS)
def test_every_option_is_documented_frozen_and_has_one_meaning(command: str) -> None:
    group = GROUPS[command]
    assert group.__struct_config__.frozen
    assert group.__doc__
    assert "Examples:" in group.__doc__
    for option in options_of(command, group):
        assert option.help.endswith("."), option.name
        for name, other in GROUPS.items():
            same = [o for o in options_of(name, other) if o.env == option.env and not (o.once or option.once)]
            assert all(o.type == option.type for o in same), f"{option.env} has two types"


def test_options_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(AttributeError):
        EngineOptions().threads = 3  # type: ignore[misc]


def test_defaults_satisfy_their_own_bounds() -> None:
    for command, group in GROUPS.items():
        for option in options_of(command, group):
            if not option.required:
                assert msgspec.convert(option.default, option.type) == option.default
