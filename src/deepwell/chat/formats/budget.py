"""What one rendering of a stranger's template may spend, and what its values weigh.

Every value that a template holds is weighed, with all that it holds, before anything is done to all of it. So nothing
costs more than was paid, and what one step does is bounded by the longest text that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

UNIT = 256
"""Characters that cost as much as one step."""
ITEM = 16
"""Characters that an item of a list weighs as much as."""
DEEPEST = 200
"""Lists in lists."""
_FEW = 6
"""A shorter text is always sought letter by letter."""


class Limit(Exception):
    """A template did more than it may."""


class Once:
    """Items that can be gone through once, as jinja2's filters give them, but whose weight is known."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self._rest = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._rest)

    def __repr__(self) -> str:
        return "<generator>"


class Budget:
    """Steps, and characters of any one text or list."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters
        self._known: dict[int, tuple[object, int, int]] = {}

    def take(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Limit("takes too many steps")

    def spend(self, size: int = 0) -> None:
        """Charge a step over `size` characters, before it is taken."""
        if size > self.characters:
            raise Limit(f"makes a text or list of more than {self.characters}")
        self.take(1 + size // UNIT)

    def handle(self, *values: object, times: int = 1) -> None:
        """Charge values for what is done to all of them, so many times."""
        self.spend(sum(map(self.weight, values)))
        self.take(sum(map(self.weight, values)) * (times - 1) // UNIT)

    def weight(self, value: object) -> int:
        """Characters of a value and of all that it holds, however often; each list is looked at once."""
        if isinstance(value, str):
            return ITEM + len(value)
        if isinstance(value, int):
            return ITEM + value.bit_length() // 3
        if isinstance(value, range):
            return ITEM + ITEM * len(value)
        return self._look(value)[0]

    def depth(self, value: object) -> int:
        """How many lists in lists a value is."""
        return self._look(value)[1]

    def _look(self, value: object) -> tuple[int, int]:
        """The weight of a value, and how deep it goes."""
        whole = value.items if isinstance(value, Once) else value
        if not isinstance(whole, list | tuple | dict):
            return ITEM, 0
        known = self._known.get(id(whole))
        if known is None:
            self.take(len(whole) // 4)
            weight, depth = ITEM, 0
            for part in (*whole, *whole.values()) if isinstance(whole, dict) else whole:
                if isinstance(part, Namespace | LoopContext):
                    raise Limit("puts into a list what changes")
                weight += self.weight(part)
                if not isinstance(part, str):
                    depth = max(depth, self._look(part)[1])
            if weight > self.characters or depth >= DEEPEST:
                raise Limit(f"makes a list of more than {self.characters} characters, or {DEEPEST} lists in lists")
            # The value is kept, so that its id stays its own.
            known = self._known[id(whole)] = (whole, weight, depth + 1)
        return known[1:]


_budget: ContextVar[Budget] = ContextVar("budget")
"""Of the rendering that runs in this context. While a template is compiled there is none: nothing charged is done."""


def budget() -> Budget:
    return _budget.get()


def begin(spendable: Budget) -> Any:
    """Spend this one from now on; gives the token for `end`."""
    return _budget.set(spendable)


def end(token: Any) -> None:
    _budget.reset(token)


def each(values: Iterable[Any]) -> Iterator[Any]:
    """The values, a step for each."""
    purse = budget()
    for value in values:
        purse.take(1)
        yield value


def seek(text: str, part: str, backward: bool = False) -> None:
    """Charge looking for a part of a text: for some, each place of the text is compared with all of the part."""
    compared = len(part)
    if not backward and len(text) >= 2500:
        compared = min(compared, 100 if len(text) < 30_000 else _FEW)
    budget().take(len(text) * compared // (4 * UNIT))
