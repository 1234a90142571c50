"""The grammar of a whole turn: what an answer to a conversation may be."""

from __future__ import annotations

from deepwell.chat import Conversation
from deepwell.errors import RequestError
from deepwell.grammar.source import Grammar, of_structure


def grammar_of(conversation: Conversation) -> Grammar | None:
    """What the answer is held to, None if it is free. Raises RequestError, naming the field, for what no grammar can
    hold."""
    structure = conversation.structure
    if structure is None or conversation.must_call:
        return None
    last = conversation.messages[-1]
    if last.prefix and last.content:
        where = f"messages[{len(conversation.messages) - 1}].prefix"
        raise RequestError(f"{where} with a begun answer is not allowed together with {structure.field}", where)
    if conversation.tools and conversation.choice == "auto":
        raise RequestError(
            f'{structure.field} is not allowed together with tools that may be called; send "tool_choice": "none"',
            structure.field,
        )
    return of_structure(structure)
