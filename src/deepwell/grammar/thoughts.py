"""Free thought, strict answer: a constraint that begins where the thought of an answer ends."""

from __future__ import annotations

from deepwell.chat.reading import Thoughts
from deepwell.chat.reading.marks import END_THINK, THINK
from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.constraint import AfterTrigger, Constraint, Unless


def behind_thought(compiled: Compiled, thoughts: Thoughts) -> Constraint:
    """A grammar for what an answer says besides its thought, which its prompt has opened or it may open itself. A
    thought is any text.

    Raises RequestError, naming the field that asked for it, for a model that spells the end of a thought in letters.
    """
    inner, vocabulary, field = compiled.constraint(), compiled.vocabulary, compiled.field
    begin, end = vocabulary.special(THINK), vocabulary.special(END_THINK)
    if end is None and thoughts.open:
        raise RequestError(
            f"{field} cannot be kept to while this model thinks: its vocabulary has no token {END_THINK}; "
            'send "thinking": {"type": "disabled"}',
            field,
        )
    if end is None:
        return inner
    after = AfterTrigger([end], inner, vocabulary.text_mask)
    if thoughts.open:
        return after
    return Unless([begin], inner, after) if thoughts.may_open and begin is not None else inner
