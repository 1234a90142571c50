"""From a model folder to something that answers: weights packed, the decoder recorded, the cache laid out."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.machine import default_threads, free_memory, inspect_machine
from deepwell.engine.runner import Further
from deepwell.engine.speculate import Mode
from deepwell.errors import CheckpointError, ConfigError
from deepwell.model.accounting import account
from deepwell.model.config import ModelConfig
from deepwell.model.decoder import Decoder
from deepwell.model.params import Param
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, MlaShape
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.tokenizer import Tokenizer

DType = Literal["auto", "float32", "bfloat16", "int8", "int4"]

_CACHE_BYTES_PER_VALUE = 4
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

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: DType = "auto",
        *,
        context: int = 0,
        blocks: int = 0,
        mtp: bool = False,
    ) -> None:
        """With `mtp`, the first multi-token prediction module is loaded too, and has a cache layer of its own."""
        config = checkpoint.config
        self.dtype = storage(dtype, checkpoint.stored)
        self.context = _context(config, context)
        check_memory(config, self.dtype, free := free_memory(inspect_machine()), mtp)
        layers = config.layers + mtp
        left = free - _weight_bytes(config, self.dtype, mtp)
        self.blocks = blocks or default_blocks(config, self.context, left, layers)
        self.context = min(self.context, self.blocks * BLOCK_TOKENS)
        self.vocab_size = config.vocab
        salt = checkpoint.fingerprint + f"{self.dtype} {config.cache_width}".encode()
        self.fingerprint = hashlib.blake2b(salt, digest_size=16).digest()
        params = checkpoint.params + [p for p in checkpoint.further if mtp and p.key.startswith("mtp.0.")]
        weights = {p.key: _pack(checkpoint, p, self.dtype) for p in params}
        recorder, decoder = native.Recorder(), Decoder(config, weights)
        self._plan = recorder.finish(decoder.logits(recorder, decoder.hidden(recorder)))
        self._cache = native.Cache([config.cache_width] * layers, self.blocks)
        self.further: Further | None = NativeFurther(decoder, self._cache) if mtp else None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        return self._plan.run(batch, self._cache)


class NativeFurther:
    """The engine's `Further`: the decoder's plan once more, with its states, and the plans of its first module."""

    def __init__(self, decoder: Decoder, cache: native.Cache) -> None:
        recorder = native.Recorder()
        x = decoder.hidden(recorder)
        self._main = recorder.finish(decoder.logits(recorder, x), x)
        self._first, self._again = (_module_plan(decoder, again) for again in (False, True))
        self._cache = cache

    def run(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits_LV, x_ND = self._main.run_all(batch, self._cache)
        return logits_LV, x_ND

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        plan = self._again if again else self._first
        logits_LV, x_LD = plan.run_all(batch, self._cache, [np.ascontiguousarray(x_ND)])
        return logits_LV, x_LD


def load_model(
    folder: Path | None = None,
    *,
    dtype: DType = "auto",
    threads: int = 0,
    context: int = 0,
    blocks: int = 0,
    speculate: Mode = "off",
) -> LoadedModel:
    """Load a Hugging Face folder, the embedded model if None.

    `threads` 0 is one per usable core; `context` 0 is the model's own; `blocks` 0 sizes the KV cache by free memory.
    What `speculate` says decides whether the multi-token prediction module is loaded.
    Raises CheckpointError for files that are missing or broken, ConfigError for a value that is not allowed.
    """
    begun = time.perf_counter()
    folder = embedded_path() if folder is None else folder
    usable = default_threads(inspect_machine())
    if not 0 <= threads <= 1024:
        raise ConfigError(f"threads is {threads}; allowed are 1 to 1024, or 0 for one per core ({usable})")
    native.set_threads(threads or usable)
    checkpoint = Checkpoint(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > checkpoint.config.vocab:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {checkpoint.config.vocab}; "
            "they belong to different models"
        )
    mtp = _wants_module(checkpoint, storage(dtype, checkpoint.stored), speculate)
    runner = NativeRunner(checkpoint, dtype, context=context, blocks=blocks, mtp=mtp)
    return LoadedModel(
        name=model_name(folder),
        folder=folder,
        config=checkpoint.config,
        tokenizer=tokenizer,
        runner=runner,
        dtype=runner.dtype,
        seconds=time.perf_counter() - begun,
    )


def model_name(folder: Path) -> str:
    """What clients call the model of a folder: the folder's name, and `deepwell` for the embedded one."""
    return "deepwell" if folder == embedded_path() else folder.resolve().name


def storage(dtype: str, stored: str) -> native.Storage:
    """How matrices are kept: as asked, or for `auto` as the checkpoint has them (float16 widens to float32)."""
    if dtype not in get_args(DType):
        raise ConfigError(f"dtype is {dtype!r}; allowed are {', '.join(get_args(DType))}")
    if dtype == "auto":
        return "bfloat16" if stored == "bfloat16" else "float32"
    return cast(native.Storage, dtype)


def default_blocks(config: ModelConfig, context: int, free_bytes: int, layers: int = 0) -> int:
    """KV blocks for several full-length sequences, or for as much of the free memory as the cache may take.

    `layers` 0 are the model's own.
    """
    block_bytes = BLOCK_TOKENS * config.cache_width * (layers or config.layers) * _CACHE_BYTES_PER_VALUE
    wanted = _PARALLEL_CONTEXTS * -(-context // BLOCK_TOKENS)
    affordable = int(free_bytes * _MEMORY_SHARE) // block_bytes
    if affordable < 1:
        raise ConfigError(f"a KV block takes {block_bytes} bytes, and only {free_bytes} bytes of memory are free")
    return min(wanted, affordable)


def check_memory(config: ModelConfig, dtype: str, free_bytes: int, mtp: bool = False) -> None:
    """Refuse a model whose weights do not fit into the free memory, before the machine begins to swap."""
    need = _weight_bytes(config, dtype, mtp)
    if need <= free_bytes:
        return
    smaller = [d for d in ("bfloat16", "int8", "int4") if _weight_bytes(config, d, mtp) <= free_bytes]
    advice = f"--dtype {smaller[0]} would fit" if smaller else "no format that Deepwell keeps weights in would fit"
    raise ConfigError(
        f"the model needs {need / 1e9:.1f} GB as {dtype}, and {free_bytes / 1e9:.1f} GB are free; {advice}"
    )


def _weight_bytes(config: ModelConfig, dtype: str, mtp: bool) -> int:
    accounting = account(config, dtype)
    return accounting.weight_bytes + (accounting.mtp_bytes if mtp else 0)


def _wants_module(checkpoint: Checkpoint, dtype: str, speculate: Mode) -> bool:
    """`auto` takes the module where there is one and memory for it; `mtp` must have it."""
    if speculate == "mtp" and not checkpoint.further:
        raise ConfigError(f"speculate is mtp, and {checkpoint.folder} has no multi-token prediction module; try lookup")
    if speculate != "auto" or not checkpoint.further:
        return speculate == "mtp"
    return _weight_bytes(checkpoint.config, dtype, True) <= free_memory(inspect_machine())


def _module_plan(decoder: Decoder, again: bool) -> native.Plan:
    """States and the tokens that follow them in; logits_LV and the module's states x_LD out."""
    recorder = native.Recorder()
    x = recorder.input(decoder.config.hidden)
    following = recorder.embed(decoder.weights["embed"])
    x, logits = decoder.predict_further(recorder, x, following, again=again)
    return recorder.finish(logits, recorder.select(x))


def _context(config: ModelConfig, asked: int) -> int:
    if not 0 <= asked <= config.context:
        raise ConfigError(f"context is {asked}; this model allows 1 to {config.context}, or 0 for its own")
    return asked or config.context


def _pack(checkpoint: Checkpoint, param: Param, kept: native.Storage) -> Any:
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
    matrix = native.Matrix(count[0] if count else 1, rows, cols, "float32" if param.kind == "router" else kept)
    for row, values in checkpoint.pieces(param):
        matrix.fill(row // rows, row % rows, np.ascontiguousarray(values))
    return matrix
