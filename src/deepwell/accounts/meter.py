"""One request's meter: counts, what they cost, and whether the answer may go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deepwell.accounts.clock import Clock
from deepwell.accounts.journal import Found, Live, Slot
from deepwell.accounts.ledger import Row
from deepwell.accounts.limits import Window
from deepwell.errors import Broke, DeepwellError, LedgerDown

FRESH_SECONDS = 2.0
"""How long what was read of keys and balances is believed: a revoked key opens nothing after it, and what runs on it
ends within about twice that."""
EMPTY_SECONDS = 0.1
"""The same, where a balance or budget is used up."""

if TYPE_CHECKING:
    from deepwell.accounts.platform import Caller


class Tab:
    """Money that requests may still use, in micro-units: what there is by the database, less what it does not know."""

    __slots__ = ("_read", "committing", "exhausted", "held", "read_at", "settled", "settlements", "unsettled")

    def __init__(self, exhausted: str, read: Callable[[], int]) -> None:
        """`exhausted` is what to say when nothing is left; `read` asks the database, and may raise LedgerDown."""
        self._read = read
        self.exhausted = exhausted
        self.settled = 0
        self.unsettled = 0
        self.held = 0
        """What prompts will cost at most that were not counted yet: many at once may not be begun on one penny."""
        self.settlements = 0
        """How often rows of this process changed it: what was read before one is out of date."""
        self.committing = 0
        """Rows of this process that may be in the database already, or not."""
        self.read_at: int | None = None

    @property
    def left(self) -> int:
        return self.settled - self.unsettled

    def refresh(self, clock: Clock, lock: threading.Lock) -> None:
        """Read it anew if it was not for seconds; what is old does while the database is away. Raises LedgerDown.

        Where nothing is left it is read more often: who has just paid is not kept waiting."""
        fresh = int((FRESH_SECONDS if self.left > 0 else EMPTY_SECONDS) * 10**9)
        known = self.read_at is not None
        if self.read_at is not None and (self.committing or clock.elapsed() - self.read_at <= fresh):
            return
        before = self.settlements
        try:
            settled = self._read()
        except LedgerDown:
            if not known:
                raise
            return
        with lock:
            if self.read_at is None or (self.settlements == before and not self.committing):
                self.settled, self.read_at = settled, clock.elapsed()


class Use:
    """What a key uses now, and has used in the last minute."""

    __slots__ = ("live", "output_live", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = Window()
        self.tokens = Window()
        """Prompts when they came, and answers when they were done."""
        self.live = 0
        self.output_live = 0
        """Tokens that live requests generated."""


class Meter:
    """Of one request, for the thread that generates and the one that answers. `why` says why `progress` said no."""

    __slots__ = (
        "_began", "_clock", "_done", "_first", "_held", "_hit", "_lock", "_miss", "_output", "_put", "_reason",
        "_reasoning", "_trouble", "_whole", "caller", "cost", "live", "refused", "slot", "tabs", "use", "why",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        live: Live,
        prompt_tokens: int,
        slot: Slot,
        tabs: Sequence[Tab],
        use: Use,
        *,
        clock: Clock,
        lock: threading.Lock,
        trouble: Callable[[], DeepwellError | None],
        put: Callable[[Meter], None],
    ) -> None:
        """`lock`, which is held now, guards tabs and use; `trouble` says what keeps the ledger from being written;
        `put` takes the meter when it has ended."""
        self.caller = caller
        self.live = live
        self.slot = slot
        self.tabs = tabs
        self.use = use
        self.cost = 0
        self.why: DeepwellError | None = None
        self.refused: DeepwellError | None = None
        """Set when its key ends while it is answered."""
        self._clock = clock
        self._lock = lock
        self._trouble = trouble
        self._put = put
        self._held = live.price.cost(0, prompt_tokens, 0)
        use.live += 1
        for tab in tabs:
            tab.held += self._held
        self._began = clock.elapsed()
        self._first: int | None = None
        self._whole = 0
        self._hit = self._miss = self._output = self._reasoning = 0
        self._reason = ""
        self._done = False

    def progress(self, hit: int, miss: int, output: int) -> bool:
        """Count tokens, all so far, before they are handed on. False: the answer must end with these, see `why`."""
        with self._lock:
            if self._done:
                return False
            self._count(hit, miss, output)
            broke = next((Broke(tab.exhausted) for tab in self.tabs if tab.left <= 0), None)
            self.why = self._trouble() or self.refused or broke
            return self.why is None

    def end(self, hit: int, miss: int, output: int, reasoning: int, reason: str) -> None:
        """The last counts, and why it ended. Only the first call counts. The ledger has it a moment later."""
        with self._lock:
            if self._done:
                return
            self._count(hit, miss, output)
            self._done = True
            self._reasoning = reasoning
            self._reason = reason
            self.slot.end(reasoning, reason)
            self.use.live -= 1
            self.use.output_live -= output
            self.use.tokens.add(self._clock.elapsed(), output)
        self._put(self)

    def give_up(self, reason: str) -> None:
        """End with what was counted."""
        self.end(self._hit, self._miss, self._output, 0, reason)

    def row(self) -> Row:
        """What the ledger keeps of it."""
        return row_of(
            Found(
                live=self.live,
                hit=self._hit,
                miss=self._miss,
                output=self._output,
                reasoning=self._reasoning,
                reason=self._reason,
                whole_us=self._whole,
                first_us=self._first,
            )
        )

    def _count(self, hit: int, miss: int, output: int) -> None:
        self._whole = (self._clock.elapsed() - self._began) // 1000
        if self._first is None and output:
            self._first = self._whole
        self.slot.store(hit, miss, output, self._whole, self._first)
        self.use.output_live += output - self._output
        self._hit, self._miss, self._output = hit, miss, output
        cost = self.live.price.cost(hit, miss, output)
        for tab in self.tabs:
            tab.unsettled += cost - self.cost
            tab.held -= self._held
        self.cost, self._held = cost, 0


def row_of(found: Found) -> Row:
    """What the ledger keeps of a request."""
    live, price = found.live, found.live.price
    return Row(
        id=live.id,
        account=live.account,
        key=live.key,
        model=live.model,
        kind=live.kind,
        started=live.started,
        ended=live.started + found.whole_us,
        first_us=found.first_us,
        whole_us=found.whole_us,
        hit=found.hit,
        miss=found.miss,
        output=found.output,
        reasoning=found.reasoning,
        reason=found.reason,
        price_hit=price.hit,
        price_miss=price.miss,
        price_output=price.output,
        currency=price.currency,
        cost=price.cost(found.hit, found.miss, found.output),
    )
