"""A compiled grammar, and the constraint that it is for one answer."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import msgspec
import numpy as np

from deepwell.errors import RequestError
from deepwell.grammar.constraint import Allowed, ConstraintError, with_tokens
from deepwell.grammar.schemas import check_schema
from deepwell.grammar.source import Grammar
from deepwell.grammar.vocabulary import Vocabulary

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=2_000_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    max_items_in_row=10_000,
    verbose_errors=False,
)
"""About 50 ms of work on regular expressions, and 100 MB for one grammar at the very most. An optional
property is four items in a row: MAX_PROPERTIES fit."""


class Compiled:
    """A grammar that is ready to be followed, any number of times. Safe in any thread."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        """Takes milliseconds to seconds. Raises RequestError for a grammar that is wrong, too large, or allows no
        answer at all."""
        self.vocabulary, self.field = vocabulary, grammar.field
        parts = msgspec.json.decode(grammar.text)["grammars"]
        described = [part["json_schema"] for part in parts if "json_schema" in part]
        for schema, field in zip(described, grammar.schemas, strict=True):
            check_schema(schema, field)
        self._start = llguidance.LLMatcher(vocabulary.tokens, grammar.text, log_level=0, limits=LIMITS)
        self._check(grammar)
        self._start.compute_bitmask()  # what answers will look up again is found here, beside the engine
        self._check(grammar)

    def constraint(self) -> MatcherConstraint:
        """For one answer, from its beginning."""
        return MatcherConstraint(self._start.deep_copy(), self.vocabulary, self.field)

    def _check(self, grammar: Grammar) -> None:
        start = self._start
        if start.is_error():
            raise RequestError(f"{grammar.field}: {start.get_error()}", grammar.field)
        if start.is_stopped() and not start.is_accepting():
            raise RequestError(f"{grammar.field} allows no answer at all", grammar.field)


class MatcherConstraint:
    """See Constraint: a place in a grammar, which moves with the answer."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary, field: str) -> None:
        self._matcher, self._field = matcher, field
        self._ends, self._others = vocabulary.ends, ~with_tokens(np.zeros_like(vocabulary.text_mask), vocabulary.ends)

    def allowed(self, draft: Sequence[int]) -> Sequence[Allowed]:
        places = [self._place()]
        guessed = 0
        for token in draft:
            if token in self._ends or not self._matcher.validate_tokens([token]):
                break
            self._matcher.consume_token(token)
            guessed += 1
            places.append(self._place())
        if guessed:
            self._matcher.rollback(guessed)
        return [*places, *[Allowed()] * (1 + len(draft) - len(places))]

    def accept(self, tokens: Sequence[int]) -> None:
        if not self._matcher.consume_tokens(list(tokens)):
            raise ConstraintError(f"{self._field}: the answer cannot go on in its grammar: {self._matcher.get_error()}")

    def _place(self) -> Allowed:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(self._others)]
        if self._matcher.is_error():
            raise ConstraintError(f"{self._field}: what may come next cannot be known: {self._matcher.get_error()}")
        return Allowed(mask & self._others, may_end=self._matcher.is_accepting())
