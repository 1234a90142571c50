"""From a model folder or file to something that answers: weights packed, the decoder recorded, the cache laid out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.identity import Identity
from deepwell.loading.machine import default_threads, free_memory, inspect_machine, limited_by_container
from deepwell.loading.memory import check_memory, default_blocks, memory_need
from deepwell.loading.pack import DType, is_quantised, label, pack_all, storages
from deepwell.loading.pack_cache import PackCache, Wanted
from deepwell.model.accounting import Accounting, account
from deepwell.model.config import ModelConfig
from deepwell.model.decoder import Decoder
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, GqaShape
from deepwell.ops.paging import CacheGroup, Page
from deepwell.ops.sampling import Ask, Chosen, SamplingRules
from deepwell.options import Speculate
from deepwell.weights import embedded_path
from deepwell.weights.importance import read_importance
from deepwell.weights.source import Source, open_source
from deepwell.weights.tokenizer import Tokenizer

CacheDType = Literal["auto", "float32", "bfloat16"]


class LoadedModel(msgspec.Struct, frozen=True):
    """A model ready to serve. `dtype` is how its matrices are kept; `seconds` is how long loading took.

    `uncached` is what a packed copy may be made of for the next start, None if there is one or it would not pay.
    """

    name: str
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    runner: NativeRunner
    dtype: str
    seconds: float
    uncached: Wanted | None = None

    def account(self, depth: int = 0) -> Accounting:
        """What the model costs as it is kept, at `depth` earlier tokens."""
        runner = self.runner
        return account(self.config, self.dtype, depth=depth, kv_bytes=runner.kv_bytes, kept=runner.kept)


class NativeRunner:
    """The engine's `Backend` in C++: one recorded plan, those of its prediction module, and one paged cache."""

    def __init__(
        self,
        source: Source,
        dtype: DType = "auto",
        *,
        cache_dtype: CacheDType = "auto",
        context: int = 0,
        blocks: int = 0,
        mtp: bool = False,
        importance: Path | None = None,
    ) -> None:
        """With `mtp`, the first multi-token prediction module is loaded too, and has a cache layer of its own."""
        config = source.config
        self.dtype = label(source, dtype)
        self.kept = storages(source, dtype)
        self.cache_dtype = cache_dtype_for(config, cache_dtype, is_quantised(source.params, self.kept))
        self.kv_bytes = 2 if self.cache_dtype == "bfloat16" else 4
        self.context = _context(config, context)
        machine = inspect_machine()
        free = free_memory(machine)
        check_memory(
            config,
            self.dtype,
            free,
            context=self.context,
            blocks=blocks,
            kv_bytes=self.kv_bytes,
            mtp=mtp,
            kept=self.kept if source.is_blocks else None,
            container=limited_by_container(machine),
        )
        need = memory_need(config, self.dtype, mtp=mtp, kept=self.kept)
        left = free - need.weights - need.activations
        self.blocks = blocks or default_blocks(config, self.context, left, self.kv_bytes, mtp=mtp)
        self.context = min(self.context, self.blocks * BLOCK_TOKENS)
        self.vocab_size = config.vocab
        weighted = read_importance(importance, config) if importance else None
        params = (*source.params, *(source.further if mtp else ()))
        self.packed = pack_all(source, params, self.kept, weighted)
        self.handles = self.packed.handles
        recorder, decoder = native.Recorder(), Decoder(config, self.handles)
        x = decoder.hidden(recorder)
        self._plan = recorder.finish(decoder.logits(recorder, x), *([x] if mtp else ()))
        self._draft_head = [_draft_head_plan(decoder, again) for again in ((False, True) if mtp else ())]
        self.widths = tuple(config.cache_widths(int(mtp)))
        self.fingerprint = Identity(config, self.packed.contents, self.widths, self.cache_dtype, native.KERNELS).digest
        self._cache = native.Cache(list(self.widths), self.blocks, self.cache_dtype == "bfloat16")
        self._greedy: list[native.Sampler] = []

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        return (CacheGroup(self.blocks),)

    @property
    def has_draft_head(self) -> bool:
        return bool(self._draft_head)

    def sampler(self, rules: SamplingRules, prompt: Sequence[int]) -> native.Sampler:
        return native.sampler(rules, self.vocab_size, prompt)

    def step(
        self, batch: Batch, asks: Sequence[Ask], states: bool
    ) -> tuple[Sequence[Chosen], NDArray[np.float32] | None]:
        chosen, further = self._plan.step(batch, self._cache, asks, states=states)
        return chosen, further[0] if states else None

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        while len(self._greedy) < len(batch.selected_L):
            self._greedy.append(self.sampler(SamplingRules(temperature=0.0), ()))
        asks = [Ask(sampler=sampler, rows=1) for sampler in self._greedy[: len(batch.selected_L)]]
        chosen, (x_LD,) = self._draft_head[again].step(batch, self._cache, asks, [x_ND], states=True)
        # a row that is not sound guesses anything: guesses are only ever guesses
        return np.array([c.tokens[0] if c.tokens else 0 for c in chosen], np.int64), x_LD

    def read_page(self, block: int) -> Page:
        return Page(self.fingerprint, self.widths, self.cache_dtype, self._cache.read(block))

    def write_page(self, block: int, page: Page) -> None:
        here = Page(self.fingerprint, self.widths, self.cache_dtype, b"")
        if msgspec.structs.replace(page, data=b"") != here:
            raise ConfigError("the page is of another model, or of another layout of its cache")
        try:
            self._cache.write(block, page.data)
        except ValueError as error:
            raise ConfigError(f"the page is damaged: {error}") from None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Compute the batch as `step` does, and return logits_LV of the selected rows: for evaluation and tests."""
        return self._plan.run(batch, self._cache)

    def run_with_states(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, with the states x_ND of all rows, for a model whose module is loaded."""
        logits_LV, x_ND = self._plan.run_all(batch, self._cache)
        return logits_LV, x_ND

    def draft_logits(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The prediction module's logits_LV and states x_LD, as `predict` chooses from: for tests."""
        logits_LV, x_LD = self._draft_head[again].run_all(batch, self._cache, [np.ascontiguousarray(x_ND)])
        return logits_LV, x_LD


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
) -> LoadedModel:
    """Load a Hugging Face folder, a GGUF file (of a split one, the first shard) or a packed file; embedded if None.

    `threads` 0 is one per usable core; `context` 0 is the model's own; `blocks` 0 sizes the KV cache by free memory.
    What `speculate` says decides whether the multi-token prediction module is loaded. `importance` weighs the inputs
    of what is quantised to int4. A packed copy in `cache` is used instead of packing anew. Raises CheckpointError for
    files that are missing or broken, ConfigError for a value that is not allowed.
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
    make = partial(_made, cache_dtype=cache_dtype, context=context, blocks=blocks, speculate=speculate)
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


def _made(wanted: Wanted, *, cache_dtype: CacheDType, context: int, blocks: int, speculate: Speculate) -> Made:
    source = wanted.source
    tokenizer = source.tokenizer()
    _check_tokenizer(tokenizer, source)
    runner = NativeRunner(
        source,
        wanted.dtype,
        cache_dtype=cache_dtype,
        context=context,
        blocks=blocks,
        mtp=_wants_module(source, wanted.dtype, speculate),
        importance=wanted.importance,
    )
    return tokenizer, runner


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


def cache_dtype_for(config: ModelConfig, asked: str, quantised: bool) -> CacheDType:
    """bfloat16 beside weights that are mostly `quantised`, where the kernels allow it; else float32, to stay exact."""
    if asked not in get_args(CacheDType):
        raise ConfigError(f"cache_dtype is {asked!r}; allowed are {', '.join(get_args(CacheDType))}")
    shape = config.attention
    if isinstance(shape, GqaShape):
        possible = shape.head_dim % 16 == 0 and shape.head_dim <= native.MOST_CACHED_WIDTH
    else:
        possible = -(-(shape.latent + shape.rope) // 32) * 32 <= native.MOST_CACHED_WIDTH
    if asked == "bfloat16" and not possible:
        raise ConfigError(
            "cache_dtype bfloat16 needs heads of a multiple of 16 values, at most "
            f"{native.MOST_CACHED_WIDTH}; this model needs float32"
        )
    if asked == "auto":
        return "bfloat16" if possible and quantised else "float32"
    return "float32" if asked == "float32" else "bfloat16"


def _wants_module(source: Source, dtype: DType, speculate: Speculate) -> bool:
    """`auto` takes the module where there is one and memory for it; `mtp` must have it."""
    if speculate == "mtp" and not source.further:
        raise ConfigError(f"speculate is mtp, and {source.path} has no multi-token prediction module; try lookup")
    if speculate != "auto" or not source.further:
        return speculate == "mtp"
    kept = storages(source, dtype)
    return memory_need(source.config, "float32", mtp=True, kept=kept).weights <= free_memory(inspect_machine())


def _draft_head_plan(decoder: Decoder, again: bool) -> native.Plan:
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
