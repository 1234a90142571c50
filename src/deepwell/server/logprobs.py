"""Log-probabilities in the two shapes that clients know."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

from deepwell.engine.types import TokenLogprob
from deepwell.server.replies import ChatToken, TextLogprobs, TopToken

NEGLIGIBLE = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

TokenBytes = Callable[[int], bytes]


def chat_logprobs(tokens: Iterable[TokenLogprob], token_bytes: TokenBytes) -> list[ChatToken]:
    """The shape of chat completions: each token with its bytes and its rivals."""
    return [_chat_token(token, token_bytes) for token in tokens]


class TextLogprobsWriter:
    """The shape of text completions. Remembers how many characters came before, for `text_offset`."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def write(self, tokens: Iterable[TokenLogprob]) -> TextLogprobs:
        """The next tokens. A token's offset counts the whole characters before it."""
        out = TextLogprobs([], [], [], [])
        for token in tokens:
            spelling = _spelled(token.bytes)
            out.tokens.append(spelling)
            out.token_logprobs.append(None if token.logprob is None else _finite(token.logprob))
            out.top_logprobs.append(self._rivals(spelling, token))
            out.text_offset.append(self._offset)
            self._offset += len(self._utf8.decode(token.bytes))
        return out

    def _rivals(self, spelling: str, token: TokenLogprob) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        rivals = {_spelled(self._token_bytes(id)): _finite(logprob) for id, logprob in token.top}
        return rivals | {spelling: _finite(token.logprob)}


def _chat_token(token: TokenLogprob, token_bytes: TokenBytes) -> ChatToken:
    rivals = [(token_bytes(id), logprob) for id, logprob in token.top]
    return ChatToken(
        token=token.bytes.decode("utf-8", "replace"),
        logprob=NEGLIGIBLE if token.logprob is None else _finite(token.logprob),
        bytes=list(token.bytes),
        top_logprobs=[TopToken(b.decode("utf-8", "replace"), _finite(p), list(b)) for b, p in rivals],
    )


def _spelled(token: bytes) -> str:
    """A token as text; one that is not whole characters as `bytes:\\xe4\\xbd`, so that different tokens stay so."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    return max(logprob, NEGLIGIBLE)
