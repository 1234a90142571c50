"""`deepwell serve`: load a model, listen, and say where and how to ask."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from deepwell import __version__
from deepwell.accounts import Platform, Prices, open_database
from deepwell.accounts.database import data_folder
from deepwell.chat import trained_to_chat
from deepwell.cli.model import TOY, chat_format, describe, kept_packed, load
from deepwell.cli.terminal import visible
from deepwell.engine import AsyncEngine, EngineConfig
from deepwell.errors import ConfigError
from deepwell.loading.load import LoadedModel
from deepwell.loading.machine import process_seconds
from deepwell.options import ServeOptions
from deepwell.server import ServerLimits, Service, Site, listen, serve
from deepwell.server.tracing import tracing

EXAMPLE_PROMPT = "import os\nimport sys\n\n\ndef main("
"""Something that even the embedded model, a few megabytes of standard library, has an idea about."""
EXAMPLE_QUESTION = "Why is the sky blue?"

_EVERYWHERE = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}


def run(options: ServeOptions) -> int:
    with ExitStack() as stack:
        listener = stack.enter_context(listen(options.host, options.port))
        platform = stack.enter_context(platform_of(options))
        tell = stack.enter_context(tracing(options.otlp))
        model = load(options)
        service = service_of(model, options)
        check_priced(platform.prices, service.names, options.prices)
        service.platform = platform

        def announce(address: str) -> None:
            print(welcome(address + site_of(options).base_path, service, model), flush=True)
            if options.model is None:
                print(f"\nnote  {TOY.format(command='serve')}", flush=True)

        with kept_packed(model, options):
            serve(service, listener, announce, msgspec.structs.replace(site_of(options), tell=tell))
    print("stopped", file=sys.stderr)
    return 0


@contextmanager
def platform_of(options: ServeOptions) -> Iterator[Platform]:
    """The accounts. Raises ConfigError where everybody on a network could ask and nobody said so."""
    prices = Prices.read(options.prices) if options.prices else None
    with ExitStack() as stack:
        try:
            database = open_database(options.database)
        except OSError as error:
            where = options.database or data_folder(os.environ)
            raise ConfigError(
                f"cannot keep accounts in {where}: {error.strerror}; name another place with --database"
            ) from None
        stack.callback(database.close)
        platform = Platform(database, prices, isolate=options.isolate)
        stack.callback(platform.close)
        if not (platform.required or options.open or is_loopback(options.host)):
            raise ConfigError(
                f"--host {options.host} lets other machines ask, and there is no API key yet: make one with "
                "`deepwell keys add NAME`, or let everybody ask with --open"
            )
        yield platform


def check_priced(prices: Prices, names: Sequence[str], table: Path | None) -> None:
    """ConfigError if there is a table of prices and a served name is not in it: it would be free, unnoticed."""
    missing = [name for name in names if not prices.knows(name)]
    if table is not None and missing:
        raise ConfigError(
            f"{table} has no price for {', '.join(missing)}; add [models.{json.dumps(missing[0])}] with miss and "
            'output (0 is free), [models."*"] for every other name, or serve under a name that has one (--name)'
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def service_of(model: LoadedModel, options: ServeOptions) -> Service:
    """What is served. A model whose prompt format was chosen by hand is taken to chat in it."""
    format = chat_format(model, options.chat_format)
    chats = options.chat_format != "auto" or trained_to_chat(format, model.tokenizer)
    names = tuple(dict.fromkeys(options.name or (model.name, *(format.names if chats else ()))))
    config = EngineConfig(
        token_budget=options.token_budget,
        step_ms=options.step_ms,
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        drain_seconds=options.drain_seconds,
        queue_seconds=options.queue_seconds,
        speculate=options.speculate,
        draft_tokens=options.draft_tokens,
    )
    return Service(
        engine=AsyncEngine(model.runner, model.tokenizer, config),
        tokenizer=model.tokenizer,
        model=names[0],
        context=model.runner.context,
        format=format,
        aliases=names[1:],
        chats=chats,
        limits=limits_of(options),
        fingerprint=model.runner.fingerprint,
        advice=model.advice,
    )


def limits_of(options: ServeOptions) -> ServerLimits:
    """The HTTP side's bounds and habits, as the options say."""
    return ServerLimits(
        max_body_bytes=int(options.max_body_mb * 2**20),
        keep_alive_seconds=options.keep_alive_seconds,
        max_tokens=options.max_tokens,
        strict=options.strict,
    )


def site_of(options: ServeOptions) -> Site:
    """What stands around the endpoints, as the options say."""
    return Site(
        host=options.host,
        allow_hosts=options.allow_host,
        allow_origins=options.allow_origin,
        base_path=f"/{path}" if (path := options.base_path.strip("/")) else "",
        log=options.log,
        log_format=options.log_format,
        data=Path(options.data_dir) if options.data_dir else data_folder(os.environ),
    )


def welcome(address: str, service: Service, model: LoadedModel) -> str:
    """What the terminal shows once requests are answered at `address`, which has no slash at its end."""
    for everywhere, local in _EVERYWHERE.items():
        address = address.replace(everywhere, local)
    where, asked = _example(service.chats)
    if not model.advice.given:
        asked["temperature"] = 0  # the API's own default lets small models ramble
    body = shlex.quote(json.dumps({"model": service.model, **asked}))
    keyed = service.platform is not None and service.platform.required
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    curl = f"curl {address}/v1/{where} -H 'Content-Type: application/json'{key} -d {body}"
    names = ", ".join(map(visible, (service.model, *service.aliases)))
    advised = "" if model.advice.given else " (the model's files advise nothing)"
    return "\n".join(
        [
            f"deepwell {__version__} serves {names}: {describe(model)}, prompt format {service.format.name}",
            f"sampled with {model.advice if model.advice.given else 'temperature 1'}, unless a request says "
            f"otherwise{advised}",
            f"loaded in {model.seconds:.2f} s, ready {process_seconds():.2f} s after the start; Ctrl-C stops",
            "",
            f"page  {address}/",
            *([f"keys  who asks needs one; {address}/admin makes them, {address}/books adds up"] if keyed else []),
            f"try   {curl}",
        ]
    )


def _example(chats: bool) -> tuple[str, dict[str, object]]:
    """An endpoint and a body that suit the model: a question for those that chat, else a text to go on with."""
    if chats:
        return "chat/completions", {"messages": [{"role": "user", "content": EXAMPLE_QUESTION}]}
    return "completions", {"prompt": EXAMPLE_PROMPT, "max_tokens": 48}
