"""Stand-ins for a model: a tiny real tokenizer, and a runner whose logits depend on what the KV cache truly holds."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from deepwell.errors import ConfigError
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.ops.paging import CacheGroup, Page
from deepwell.ops.sampling import Ask, Chosen, SamplingRules, with_states
from deepwell.weights.tokenizer import Tokenizer

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
SPECIALS = (
    BOS,
    EOS,
    PAD,
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
    "<|EOT|>",
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog. A deep well holds clear water.",
    "def add(first, second):\n    return first + second\n",
    "Größe, naïve café, 深度求索, 🐳🚀, ελληνικά",
)


def write_tiny_tokenizer(folder: Path, vocab_size: int = 320, specials: Sequence[str] = SPECIALS) -> Path:
    """Train a byte-level BPE on three sentences and write it as a model folder; `specials` have the ids from 0."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS * 4, trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    bpe.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    return folder


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """A real tokenizer of 320 tokens; its eos is EOS."""
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(write_tiny_tokenizer(Path(folder)))


class FakeRunner:
    """A paged model without weights, the engine's `Backend`. Its cache keeps (position, token) in the slot that a real
    one would use; what is asked of its logits is chosen by the native backend.

    Logits of a row are drawn from a hash of every (position, token) found *through the block table*, so a wrong page,
    an overwritten slot or a stale block changes the answer or is noted in `violations`. `next_token(context)` names
    the token to make most likely, None leaves it to the hash. `fail(batch)` may raise, to play a broken runner; a
    context whose last token is in `nan_after` gives NaN. `delay` is seconds per step.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 320,
        blocks: int = 256,
        context: int = 4096,
        next_token: Callable[[tuple[int, ...]], int | None] | None = None,
        delay: float = 0.0,
        fail: Callable[[Batch], None] | None = None,
        nan_after: frozenset[int] = frozenset(),
        fingerprint: bytes = b"fake",
    ) -> None:
        self.vocab_size, self.blocks, self.context, self.fingerprint = vocab_size, blocks, context, fingerprint
        self.next_token, self.delay, self.fail, self.nan_after = next_token, delay, fail, nan_after
        self.has_draft_head, self.hidden = False, 2
        self.slots = np.full((blocks, BLOCK_TOKENS, 2), -1, np.int64)
        self.violations: list[str] = []
        self.batches: list[Batch] = []

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        return (CacheGroup(self.blocks),)

    def sampler(self, rules: SamplingRules, prompt: Sequence[int]) -> native.Sampler:
        return native.sampler(rules, self.vocab_size, prompt)

    def step(self, batch: Batch, asks: Sequence[Ask], states: bool) -> tuple[list[Chosen], NDArray[np.float32] | None]:
        """See Backend. The state of a row is (position, token)."""
        x_ND = np.stack([batch.positions_T, batch.tokens_T], axis=1).astype(np.float32)
        chosen = with_states(native.choose(self.run(batch), asks), asks, x_ND[batch.selected_L])
        return chosen, x_ND if states else None

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        raise AssertionError("this model has no prediction module")

    def read_page(self, block: int) -> Page:
        return Page(self.fingerprint, (2,), "int64", self.slots[block].tobytes())

    def write_page(self, block: int, page: Page) -> None:
        if (page.fingerprint, page.widths) != (self.fingerprint, (2,)):
            raise ConfigError("the page is of another model")
        self.slots[block] = np.frombuffer(page.data, np.int64).reshape(BLOCK_TOKENS, 2)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """The logits of the batch's selected rows. Keeps every batch it was given in `batches`."""
        if self.delay:
            time.sleep(self.delay)
        self.batches.append(batch)
        if self.fail is not None:
            self.fail(batch)
        self._write(batch)
        rows = [self._logits(batch, int(row)) for row in batch.selected_L]
        return np.stack(rows) if rows else np.zeros((0, self.vocab_size), np.float32)

    def _write(self, batch: Batch) -> None:
        arrays = (batch.tokens_T, batch.positions_T, batch.sequence_T, batch.block_table_SP, batch.selected_L)
        if any(array.dtype != np.int32 for array in arrays):
            self.violations.append("a batch array is not int32")
        pages_T = batch.block_table_SP[batch.sequence_T, batch.positions_T // BLOCK_TOKENS]
        slots_T = batch.positions_T % BLOCK_TOKENS
        if len({*zip(pages_T.tolist(), slots_T.tolist(), strict=True)}) != len(pages_T):
            self.violations.append("two rows write one slot")
        same_T = np.diff(batch.sequence_T) == 0
        begins = [batch.sequence_T[0], *batch.sequence_T[1:][~same_T]]
        if (np.diff(batch.positions_T)[same_T] != 1).any() or len(set(begins)) < len(begins):
            self.violations.append("rows of a sequence are not consecutive")
        self.slots[pages_T, slots_T, 0] = batch.positions_T
        self.slots[pages_T, slots_T, 1] = batch.tokens_T

    def _logits(self, batch: Batch, row: int) -> NDArray[np.float32]:
        position = int(batch.positions_T[row])
        pages = batch.block_table_SP[batch.sequence_T[row], : position // BLOCK_TOKENS + 1]
        found = self.slots[pages].reshape(-1, 2)[: position + 1]
        if (found[:, 0] != np.arange(position + 1)).any():
            self.violations.append(f"the pages of position {position} hold other positions")
        context = tuple(found[:, 1].tolist())
        return self.logits_of(context)

    def logits_of(self, context: tuple[int, ...]) -> NDArray[np.float32]:
        """Logits after `context`: what the runner gives when the paging is right."""
        digest = hashlib.blake2b(np.asarray(context, np.int64).tobytes(), digest_size=8).digest()
        logits_V = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(self.vocab_size) * 3
        likely = self.next_token(context) if self.next_token is not None else None
        if likely is not None:
            logits_V[likely] = 40.0
        if context[-1] in self.nan_after:
            logits_V[0] = np.nan
        return logits_V.astype(np.float32)


def reply(token_ids: Sequence[int], after: int) -> Callable[[tuple[int, ...]], int | None]:
    """A `next_token` that answers with `token_ids` after the last `after` token of the context, then leaves it open.

    End `token_ids` with an eos to end the answer.
    """

    def next_token(context: tuple[int, ...]) -> int | None:
        if after not in context:
            return None
        said = context[::-1].index(after)
        return token_ids[said] if said < len(token_ids) else None

    return next_token
