"""The engine's backend in C++: a model's parameters packed, its decoder recorded, its cache laid out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import ConfigError
from deepwell.loading.identity import Identity
from deepwell.loading.machine import free_memory, inspect_machine, what_limits
from deepwell.loading.memory import ROWS, SCORED, check_memory, default_blocks, memory_need
from deepwell.loading.pack import DType, Progress, is_quantised, label, pack_all, storages
from deepwell.model.config import ModelConfig
from deepwell.model.decoder import Decoder
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, GqaShape
from deepwell.ops.paging import CacheGroup, Page
from deepwell.ops.sampling import Ask, Chosen, SamplingRules, with_states
from deepwell.weights.importance import read_importance
from deepwell.weights.source import Source

CacheDType = Literal["auto", "float32", "bfloat16"]


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
        rows: int = ROWS,
        scored: int = SCORED,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """With `mtp`, the first multi-token prediction module is loaded too, and has a cache layer of its own. Steps
        will compute `rows` tokens at most, and the logits of `scored` of them: memory is kept free for that.
        `progress` is told of the packing.

        Raises ConfigError where memory is too small, or for a value that is not allowed.
        """
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
            rows=rows,
            scored=scored,
            within=what_limits(machine),
        )
        need = memory_need(config, self.dtype, mtp=mtp, kept=self.kept, rows=rows, scored=scored)
        left = free - need.weights - need.activations
        self.blocks = blocks or default_blocks(config, self.context, left, self.kv_bytes, mtp=mtp)
        self.context = min(self.context, self.blocks * BLOCK_TOKENS)
        self.vocab_size, self.hidden = config.vocab, config.hidden
        weighted = read_importance(importance, config) if importance else None
        params = (*source.params, *(source.mtp_params if mtp else ()))
        self.packed = pack_all(source, params, self.kept, weighted, progress)
        self.handles = self.packed.handles
        recorder, decoder = native.Recorder(), Decoder(config, self.handles)
        x = decoder.hidden(recorder)
        h = decoder.normed(recorder, x)
        self._plan = recorder.finish(decoder.head(recorder, h), h, *([x] if mtp else ()))
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
        embeds = any(ask.state for ask in asks)
        chosen, further = self._plan.step(batch, self._cache, asks, states=states or embeds)
        if embeds:
            chosen = with_states(chosen, asks, further[0])
        return chosen, further[1] if states else None

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
        logits_LV, _, x_ND = self._plan.run_all(batch, self._cache)
        return logits_LV, x_ND

    def draft_logits(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The prediction module's logits_LV and states x_LD, as `predict` chooses from: for tests."""
        logits_LV, x_LD = self._draft_head[again].run_all(batch, self._cache, [np.ascontiguousarray(x_ND)])
        return logits_LV, x_LD


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


def _draft_head_plan(decoder: Decoder, again: bool) -> native.Plan:
    """States and the tokens that follow them in; logits_LV and the module's states x_LD out."""
    recorder = native.Recorder()
    x = recorder.input(decoder.config.hidden)
    following = recorder.embed(decoder.weights["embed"])
    x, logits = decoder.predict_ahead(recorder, x, following, again=again)
    return recorder.finish(logits, recorder.select(x))


def _context(config: ModelConfig, asked: int) -> int:
    if not 0 <= asked <= config.context:
        raise ConfigError(f"context is {asked}; this model allows 1 to {config.context}, or 0 for its own")
    return asked or config.context
