"""What the commands that answer share: a loaded model, a line about it, its prompt format."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from deepwell.chat import FORMATS, detect, find_format
from deepwell.chat.formats.base import Format, lacks
from deepwell.cli.hub import located
from deepwell.cli.terminal import visible
from deepwell.cli.waiting import Wait, percent
from deepwell.engine import EngineConfig
from deepwell.errors import ConfigError
from deepwell.loading.load import LoadedModel, load_model
from deepwell.loading.memory import ROWS, STREAMS
from deepwell.loading.pack_cache import PackCache, cache_folder, storing
from deepwell.ops import native
from deepwell.options import ChatFormat, EngineOptions, ServeOptions


def load(options: EngineOptions) -> LoadedModel:
    """The model asked for; a warning on standard error if it will be slow. Raises a DeepwellError."""
    place = located(options.model)
    with Wait(f"loading {place.name if place else 'the embedded model'}", percent) as wait:
        model = load_model(
            place,
            dtype=options.dtype,
            cache_dtype=options.cache_dtype,
            importance=options.importance,
            threads=options.threads,
            context=options.context,
            speculate=options.speculate,
            cache=_cache(options),
            rows=options.token_budget if isinstance(options, ServeOptions) else ROWS,
            streams=options.max_running if isinstance(options, ServeOptions) else STREAMS,
            progress=wait,
        )
    tell(model.notes)
    if slow := slowness(native.isa(), native.available_isas()):
        _warn(slow)
    return model


TOY = (
    "this is the embedded model, a toy of 3.8 million parameters: it goes on with Python-like text and does not chat; "
    "a real one: deepwell {command} SmolLM2-135M-Instruct (about 105 MB, fetched once), ORG/NAME, a folder or a .gguf "
    "file (deepwell models lists names and what fits here)"
)
"""What somebody should know who named no model."""


@contextmanager
def kept_packed(model: LoadedModel, options: EngineOptions) -> Iterator[None]:
    """While a long-lived command runs, write the packed copy that the next start will use."""
    cache = _cache(options)
    if cache is None or model.uncached is None:
        yield
        return
    print("deepwell: writing a packed copy for the next start (--pack-cache 0 for none)", file=sys.stderr, flush=True)
    with storing(cache, model.uncached, model.runner.packed):
        yield


def _cache(options: EngineOptions) -> PackCache | None:
    folder = cache_folder(os.environ)
    if options.pack_cache == 0 or folder is None:
        return None
    return PackCache(folder, int(options.pack_cache * 1e9), _warn)


def tell(notes: Iterable[str]) -> None:
    """What is good to know of a model's files, and no danger."""
    for note in notes:
        print(f"deepwell: note: {visible(note)}", file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    print(f"deepwell: warning: {visible(text)}", file=sys.stderr, flush=True)


def slowness(isa: str, available: Sequence[str]) -> str | None:
    """What to say to someone who is about to wait: `isa` is in use, `available` lists the best first."""
    if isa != "scalar":
        return None
    if available[0] != isa:
        return f"DEEPWELL_ISA={isa} computes many times slower than {available[0]}, which this processor has: unset it"
    return "this processor has no AVX2, AVX-512 or NEON that Deepwell could use; it computes many times slower"


def chat_format(model: LoadedModel, wanted: ChatFormat) -> Format:
    """The prompt format that is forced, or else the one that the model shows.

    CheckpointError if it is the model's own template, and that cannot be used. ConfigError if the one that is forced
    needs tokens that the model lacks.
    """
    if wanted == "auto":
        return detect(model.tokenizer, model.config.family)
    format = find_format(wanted, model.tokenizer)
    if missing := lacks(format, model.tokenizer):
        fitting = ", ".join(name for name, other in FORMATS.items() if not lacks(other, model.tokenizer))
        raise ConfigError(
            f"--chat-format {wanted} needs {' and '.join(missing)}, and this model's tokenizer has no such token; "
            f"those whose tokens it has are {fitting}"
        )
    return format


def engine_config(options: EngineOptions) -> EngineConfig:
    """The engine's configuration for the options that every command has."""
    return EngineConfig(speculate=options.speculate, draft_tokens=options.draft_tokens)


def describe(model: LoadedModel) -> str:
    """How it runs, in a few words."""
    return f"{model.dtype}, {native.isa()}, {native.threads()} threads, context of {model.runner.context} tokens"
