"""From a model folder or file to something that answers: weights packed, the decoder recorded, the cache laid out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.machine import default_threads, free_memory, inspect_machine
from deepwell.loading.memory import ROWS, STREAMS, memory_need
from deepwell.loading.pack import DType, Progress, storages
from deepwell.loading.pack_cache import PackCache, Wanted
from deepwell.loading.runner import CacheDType, NativeRunner
from deepwell.model.accounting import Accounting, account
from deepwell.model.config import ModelConfig
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.options import Speculate
from deepwell.weights import embedded_path
from deepwell.weights.advice import Advice
from deepwell.weights.source import Source, open_source
from deepwell.weights.tokenizer import Tokenizer


class LoadedModel(msgspec.Struct, frozen=True):
    """A model ready to serve. `dtype` is how its matrices are kept; `seconds` is how long loading took.

    `uncached` is what a packed copy may be made of for the next start, None if there is one or it would not pay.
    `advice` is how its makers would have it sampled, `notes` are sentences about what had to be assumed of its files.
    """

    name: str
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    runner: NativeRunner
    dtype: str
    seconds: float
    uncached: Wanted | None = None
    advice: Advice = Advice()
    notes: tuple[str, ...] = ()

    def account(self, depth: int = 0) -> Accounting:
        """What the model costs as it is kept, at `depth` earlier tokens."""
        runner = self.runner
        return account(self.config, self.dtype, depth=depth, kv_bytes=runner.kv_bytes, kept=runner.kept)


def load_model(
    folder: Path | None = None,
    *,
    dtype: DType = "auto",
    cache_dtype: CacheDType = "auto",
    threads: int = 0,
    context: int = 0,
    blocks: int = 0,
    speculate: Speculate = "off",
    importance: Path | None = None,
    cache: PackCache | None = None,
    rows: int = ROWS,
    streams: int = STREAMS,
    progress: Progress = lambda done, total: None,
) -> LoadedModel:
    """Load a Hugging Face folder, a GGUF file (of a split one, the first shard) or a packed file; embedded if None.

    `threads` 0 is one per usable core; `context` 0 is the model's own; `blocks` 0 sizes the KV cache by free memory.
    What `speculate` says decides whether the multi-token prediction module is loaded. `importance` weighs the inputs
    of what is quantised to int4. A packed copy in `cache` is used instead of packing anew. Memory is left for steps
    of `rows` tokens and so many `streams`. `progress` is told of the packing. Raises CheckpointError for files that are
    missing or broken, ConfigError for a value that is not allowed.
    """
    begun = time.perf_counter()
    check_isa()
    folder = embedded_path() if folder is None else folder
    usable = default_threads(inspect_machine())
    if not 0 <= threads <= 1024:
        raise ConfigError(f"threads is {threads}; allowed are 1 to 1024, or 0 for one per core ({usable})")
    if importance is not None and dtype != "int4":
        raise ConfigError(f"importance weighs what is quantised to int4, and dtype is {dtype}")
    native.set_threads(threads or usable)
    wanted = Wanted(open_source(folder), dtype, importance)
    make = partial(
        _made,
        speculate=speculate,
        cache_dtype=cache_dtype,
        context=context,
        blocks=blocks,
        rows=rows,
        scored=streams + BLOCK_TOKENS,
        progress=progress,
    )
    kept = cache if cache is not None and cache.worth(wanted) else None
    made = _from_copy(kept, wanted, make) if kept else None
    tokenizer, runner = made or make(wanted)
    return LoadedModel(
        name=model_name(folder),
        folder=folder,
        config=wanted.source.config,
        tokenizer=tokenizer,
        runner=runner,
        dtype=runner.dtype,
        seconds=time.perf_counter() - begun,
        uncached=wanted if kept and not made else None,
        advice=wanted.source.advice,
        notes=(*wanted.source.notes, *tokenizer.notes),
    )


Made = tuple[Tokenizer, NativeRunner]


def _from_copy(cache: PackCache, wanted: Wanted, make: Callable[[Wanted], Made]) -> Made | None:
    """The model from its packed copy; None if there is none, or a damaged one, which is removed."""
    if (copy := cache.find(wanted)) is None:
        return None
    try:
        return make(Wanted(copy, "auto"))
    except CheckpointError as e:
        cache.discard(copy, e)
        return None


def _made(wanted: Wanted, *, speculate: Speculate, **options: Any) -> Made:
    """`options` are NativeRunner's."""
    source = wanted.source
    tokenizer = source.tokenizer()
    _check_tokenizer(tokenizer, source)
    mtp = _wants_module(source, wanted.dtype, speculate)
    return tokenizer, NativeRunner(source, wanted.dtype, mtp=mtp, importance=wanted.importance, **options)


def _check_tokenizer(tokenizer: Tokenizer, source: Source) -> None:
    """Every id that the tokenizer can give, its first and last tokens included, has a row in the model."""
    vocab, folder = source.config.vocab, source.path.is_dir()
    if tokenizer.vocab_size > vocab:
        what = "tokenizer.json" if folder else "its tokenizer"
        raise CheckpointError(
            f"{source.path}: {what} has {tokenizer.vocab_size} tokens, the model only {vocab}; "
            "they belong to different models"
        )
    for name, id in (("bos", tokenizer.bos), *(("eos", id) for id in tokenizer.eos)):
        if id is not None and id >= vocab:
            where = "generation_config.json or config.json" if folder else "its metadata"
            raise CheckpointError(
                f"{source.path}: {where} names {id} as {name}_token_id, the model has only {vocab} tokens; "
                f"allowed are 0 to {vocab - 1}: take these files from the model that the weights are of"
            )


def check_isa() -> None:
    """Choose the instruction set; ConfigError if DEEPWELL_ISA asks for one that this machine does not have."""
    try:
        native.isa()
    except ValueError as error:
        raise ConfigError(f"DEEPWELL_ISA: {error}") from None


def model_name(folder: Path) -> str:
    """What clients call a model: the name of its folder, file or repository, and `deepwell` for the embedded one."""
    if folder.is_file():
        return re.sub(r"(-00001-of-\d{5})?\.gguf$|\.deepwell$", "", folder.name)
    whole = folder.resolve()
    if whole.parent.name == "snapshots" and whole.parent.parent.name.startswith("models--"):  # a hub's, named by commit
        return whole.parent.parent.name.rpartition("--")[2]
    return "deepwell" if folder == embedded_path() else whole.name


def _wants_module(source: Source, dtype: DType, speculate: Speculate) -> bool:
    """`auto` takes the module where there is one and memory for it; `mtp` must have it."""
    if speculate == "mtp" and not source.mtp_params:
        raise ConfigError(f"speculate is mtp, and {source.path} has no multi-token prediction module; try lookup")
    if speculate != "auto" or not source.mtp_params:
        return speculate == "mtp"
    kept = storages(source, dtype)
    return memory_need(source.config, "float32", mtp=True, kept=kept).weights <= free_memory(inspect_machine())
