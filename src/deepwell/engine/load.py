"""From a model folder to something that answers: weights packed, the decoder recorded, the cache laid out."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.machine import default_threads, free_memory, inspect_machine, limited_by_container
from deepwell.errors import CheckpointError, ConfigError
from deepwell.model.accounting import account
from deepwell.model.config import ModelConfig
from deepwell.model.decoder import Decoder
from deepwell.model.params import Param, param_specs
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, MlaShape
from deepwell.weights import embedded_path
from deepwell.weights.source import Source, open_source
from deepwell.weights.tokenizer import Tokenizer

DType = Literal["auto", "float32", "bfloat16", "int8", "int4"]

_CACHE_BYTES_PER_VALUE = 4
_LEAST_CONTEXT = 512
"""Tokens that the cache must at least have room for, unless the model or the user wants fewer."""
_READING_BYTES_PER_VALUE = 5
"""A tensor being read stands in memory as float32, beside a mask of what is finite."""
_PARALLEL_CONTEXTS = 16
"""Without a limit given, the cache holds this many sequences of full length, memory allowing."""
_MEMORY_SHARE = 0.4
"""Share of the free memory that the cache may take when nothing else is said."""


class LoadedModel(msgspec.Struct, frozen=True):
    """A model ready to serve. `dtype` is how its matrices are kept; `seconds` is how long loading took."""

    name: str
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    runner: NativeRunner
    dtype: str
    seconds: float


class NativeRunner:
    """The engine's `Runner` over the C++ backend: one recorded plan and one paged cache."""

    def __init__(self, checkpoint: Source, dtype: DType = "auto", *, context: int = 0, blocks: int = 0) -> None:
        config = checkpoint.config
        self.dtype = storage(dtype, checkpoint.stored)
        self.context = _context(config, context)
        machine = inspect_machine()
        free = free_memory(machine)
        check_memory(
            config, self.dtype, free, context=self.context, blocks=blocks, container=limited_by_container(machine)
        )
        self.blocks = blocks or default_blocks(config, self.context, free - account(config, self.dtype).weight_bytes)
        self.context = min(self.context, self.blocks * BLOCK_TOKENS)
        self.vocab_size = config.vocab
        salt = checkpoint.fingerprint + f"{self.dtype} {config.cache_width}".encode()
        self.fingerprint = hashlib.blake2b(salt, digest_size=16).digest()
        weights = {p.key: _pack(checkpoint, p, self.dtype) for p in checkpoint.params}
        recorder, decoder = native.Recorder(), Decoder(config, weights)
        self._plan = recorder.finish(decoder.logits(recorder, decoder.hidden(recorder)))
        self._cache = native.Cache([config.cache_width] * config.layers, self.blocks)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self._plan.run(batch, self._cache)


def load_model(
    folder: Path | None = None, *, dtype: DType = "auto", threads: int = 0, context: int = 0, blocks: int = 0
) -> LoadedModel:
    """Load a Hugging Face folder or a GGUF file (of a split one, the first shard); the embedded model if None.

    `threads` 0 is one per usable core; `context` 0 is the model's own; `blocks` 0 sizes the KV cache by free memory.
    Raises CheckpointError for files that are missing or broken, ConfigError for a value that is not allowed.
    """
    begun = time.perf_counter()
    check_isa()
    folder = embedded_path() if folder is None else folder
    usable = default_threads(inspect_machine())
    if not 0 <= threads <= 1024:
        raise ConfigError(f"threads is {threads}; allowed are 1 to 1024, or 0 for one per core ({usable})")
    native.set_threads(threads or usable)
    checkpoint = open_source(folder)
    tokenizer = checkpoint.tokenizer()
    if tokenizer.vocab_size > checkpoint.config.vocab:
        what = "tokenizer.json" if folder.is_dir() else "its tokenizer"
        raise CheckpointError(
            f"{folder}: {what} has {tokenizer.vocab_size} tokens, the model only {checkpoint.config.vocab}; "
            "they belong to different models"
        )
    runner = NativeRunner(checkpoint, dtype, context=context, blocks=blocks)
    return LoadedModel(
        name=model_name(folder),
        folder=folder,
        config=checkpoint.config,
        tokenizer=tokenizer,
        runner=runner,
        dtype=runner.dtype,
        seconds=time.perf_counter() - begun,
    )


def check_isa() -> None:
    """Choose the instruction set; ConfigError if DEEPWELL_ISA asks for one that this machine does not have."""
    try:
        native.isa()
    except ValueError as error:
        raise ConfigError(f"DEEPWELL_ISA: {error}") from None


def model_name(folder: Path) -> str:
    """What clients call a model: the name of its folder or GGUF file, and `deepwell` for the embedded one."""
    if folder.is_file():
        return re.sub(r"(-00001-of-\d{5})?\.gguf$", "", folder.name)
    return "deepwell" if folder == embedded_path() else folder.resolve().name


def storage(dtype: str, stored: str) -> native.Storage:
    """How matrices are kept: as asked, or for `auto` as the checkpoint has them.

    float16 widens to float32. float8 becomes bfloat16: exact where the scales are powers of two, else rounded.
    """
    if dtype not in get_args(DType):
        raise ConfigError(f"dtype is {dtype!r}; allowed are {', '.join(get_args(DType))}")
    if dtype == "auto":
        return "bfloat16" if stored in ("bfloat16", "float8") else "float32"
    return cast(native.Storage, dtype)


def block_bytes_of(config: ModelConfig, kv_bytes: int = _CACHE_BYTES_PER_VALUE) -> int:
    """Bytes of a KV block: 64 tokens of every layer, in values of `kv_bytes` bytes."""
    return BLOCK_TOKENS * config.cache_width * config.layers * kv_bytes


def default_blocks(config: ModelConfig, context: int, free_bytes: int) -> int:
    """KV blocks for several full-length sequences, or for as much of the free memory as the cache may take."""
    block_bytes = block_bytes_of(config)
    wanted = _PARALLEL_CONTEXTS * -(-context // BLOCK_TOKENS)
    affordable = int(free_bytes * _MEMORY_SHARE) // block_bytes
    if affordable < 1:
        raise ConfigError(f"a KV block takes {block_bytes} bytes, and only {free_bytes} bytes of memory are free")
    return min(wanted, affordable)


class Need(msgspec.Struct, frozen=True):
    """Bytes that serving a model takes at least: its weights, a KV cache of `tokens`, reading the largest tensor."""

    weights: int
    cache: int
    reading: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.reading


def memory_need(
    config: ModelConfig, dtype: str, *, context: int = 0, blocks: int = 0, kv_bytes: int = _CACHE_BYTES_PER_VALUE
) -> Need:
    """What weights kept as `dtype` and a cache of `blocks` blocks need; 0 blocks ask for a sequence of 512 tokens."""
    blocks = blocks or -(-min(context or config.context, _LEAST_CONTEXT) // BLOCK_TOKENS)
    params = account(config, dtype)
    largest = max(p.size // len(p.sources) for p in param_specs(config))
    return Need(
        params.weight_bytes,
        blocks * block_bytes_of(config, kv_bytes),
        largest * _READING_BYTES_PER_VALUE,
        blocks * BLOCK_TOKENS,
    )


def check_memory(
    config: ModelConfig,
    dtype: str,
    free_bytes: int,
    *,
    context: int = 0,
    blocks: int = 0,
    kv_bytes: int = _CACHE_BYTES_PER_VALUE,
    container: bool = False,
) -> None:
    """Refuse what does not fit into the free memory, before the machine begins to swap.

    ConfigError says what is needed, for what, and the same for every smaller format. `container` says that it is a
    container's limit that leaves no more.
    """

    def need_of(kept: str) -> Need:
        return memory_need(config, kept, context=context, blocks=blocks, kv_bytes=kv_bytes)

    need = need_of(dtype)
    if need.total <= free_bytes:
        return
    totals = {kept: need_of(kept).total for kept in ("bfloat16", "int8", "int4")}
    smaller = {kept: total for kept, total in totals.items() if total < need.total}
    fits = [kept for kept, total in smaller.items() if total <= free_bytes]
    others = ", ".join(f"as {kept} {_gb(total)}{' (fits)' * (kept in fits)}" for kept, total in smaller.items())
    raise ConfigError(
        f"not enough memory: the model needs {_gb(need.total)} as {dtype} ({_gb(need.weights)} of weights, "
        f"{_gb(need.cache)} of KV cache for {need.tokens} tokens, {_gb(need.reading)} to read its largest tensor), and "
        f"{_gb(free_bytes)} are free{' within the limit of this container' * container}; "
        + (f"it would need {others}: " if others else "")
        + (f"use --dtype {fits[0]}" if fits else "no format that Deepwell keeps weights in would fit")
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _context(config: ModelConfig, asked: int) -> int:
    if not 0 <= asked <= config.context:
        raise ConfigError(f"context is {asked}; this model allows 1 to {config.context}, or 0 for its own")
    return asked or config.context


def _pack(checkpoint: Source, param: Param, kept: native.Storage) -> Any:
    """One parameter as the native backend keeps it, filled a source tensor at a time."""
    if param.kind == "vector":
        return native.vector(checkpoint.whole(param))
    if param.kind == "kv_b":
        shape = checkpoint.config.attention
        assert isinstance(shape, MlaShape)
        packed = native.KvB(shape.heads, shape.nope, shape.value, shape.latent, kept)
        packed.fill(0, checkpoint.whole(param))
        return packed
    *count, rows, cols = param.shape
    # routers decide by small differences, so they are never quantised
    make = native.gate_up_matrix if param.key.endswith("gate_up") else native.Matrix
    matrix = make(count[0] if count else 1, rows, cols, "float32" if param.kind == "router" else kept)
    for row, values in checkpoint.pieces(param):
        matrix.fill(row // rows, row % rows, np.ascontiguousarray(values))
    return matrix
