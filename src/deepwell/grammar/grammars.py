"""Grammars compiled beside the event loop and the engine, each of them once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.source import Grammar
from deepwell.grammar.vocabulary import Vocabulary
from deepwell.weights.tokenizer import Tokenizer

KEPT = 64
"""Grammars that are kept compiled, those asked for last."""
SECONDS = 10.0
"""What compiling may take before its request is refused."""
THREADS = 2
STACK_BYTES = 512 << 20
"""Of their stacks, of which only what is used is memory: the compiler goes as deep as rules that name each other, and
within MAX_CHARACTERS there may be thousands. A stack of the usual size ends there, and the server with it."""


class Grammars:
    """The grammars of one model, for the event loop. `size` is that of its logits; for `ends` see Vocabulary."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Iterable[int] = ()) -> None:
        self._tokenizer, self._size, self._more_ends = tokenizer, size, tuple(ends)
        self._kept: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._waiting: Counter[Grammar] = Counter()

    async def compiled(self, grammar: Grammar) -> Compiled:
        """The grammar, ready to be followed. Raises RequestError for one that is wrong or takes too long.

        Those who wait for the same grammar wait together; it is not begun when all of them have left. A grammar that
        failed is tried anew the next time.
        """
        work = self._kept.get(grammar)
        if work is None:
            work = self._kept[grammar] = self._deep(grammar)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        self._waiting[grammar] += 1
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(work)), SECONDS)
        except TimeoutError:
            raise RequestError(
                f"{grammar.field} takes more than {SECONDS:g} s to compile; simplify it", grammar.field
            ) from None
        except RequestError:
            self._kept.pop(grammar, None)
            raise
        finally:
            self._waiting[grammar] -= 1
            if not self._waiting[grammar]:
                del self._waiting[grammar]
                if work.cancel():  # it was not begun
                    self._kept.pop(grammar, None)

    def _deep(self, grammar: Grammar) -> Future[Compiled]:
        """Compile in a thread with a deep stack: the pool begins one, if it does, right here."""
        before = threading.stack_size(STACK_BYTES)
        try:
            return self._threads.submit(self._compile, grammar)
        finally:
            threading.stack_size(before)

    def _compile(self, grammar: Grammar) -> Compiled:
        return Compiled(grammar, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer, self._size, self._more_ends)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, "deepwell-grammar")
