"""Conversations as token ids.

Template tokens of a layout become their ids; everything between two of them is encoded at once as plain text, so what a
user writes can never turn into a template token.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepwell.chat.conversation import Conversation, without_developers
from deepwell.chat.formats.base import BOS, EOS, Format, Layout, Token
from deepwell.chat.rules import check
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer


def render_chat(conversation: Conversation, tokenizer: Tokenizer, format: Format) -> tuple[int, ...]:
    """Token ids that ask the model for the next assistant turn.

    Raises RequestError, which names the field, for what `check` refuses, what else the format cannot say (a role, an
    order of turns), or a format whose template tokens the tokenizer lacks.
    """
    check(conversation, format)
    told = conversation if format.developers else without_developers(conversation)
    return tuple(_splice(format.layout(told), format.name, tokenizer))


def end_ids(format: Format, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer in `format` besides the tokenizer's own."""
    ids = (tokenizer.special(end.spelling) for end in format.ends)
    return tuple(id for id in ids if id is not None and id not in tokenizer.ends)


def _splice(layout: Layout, format: str, tokenizer: Tokenizer) -> Iterator[int]:
    texts: list[str] = []
    before: int | None = None
    for part in layout:
        ids = None if isinstance(part, str) else _ids(part, format, tokenizer)
        if ids is None:
            texts.append(part if isinstance(part, str) else part.spelling)
            continue
        if text := tokenizer.between(before, "".join(texts), ids[0] if ids else None):
            yield from tokenizer.encode(text)
        texts, before = [], ids[-1] if ids else before
        yield from ids
    if text := tokenizer.between(before, "".join(texts), None):
        yield from tokenizer.encode(text)


def _ids(token: Token, format: str, tokenizer: Tokenizer) -> tuple[int, ...] | None:
    """None for a token that the tokenizer lacks and that may be text."""
    if token is BOS:
        return () if tokenizer.bos is None else (tokenizer.bos,)
    id = tokenizer.special(token.spelling)
    if id is not None:
        return (id,)
    if token.may_be_text:
        return None
    if token is EOS:
        return tokenizer.eos[:1]
    raise RequestError(f"prompt format {format!r} needs the token {token.spelling}, which this model lacks")
