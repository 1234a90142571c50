"""The format of strangers: their own chat template, run in a sandbox.

The template writes text, in which its tokens must become ids and the same spelling in what users wrote must not. So the
users' texts go in with a mark inside of every template token they spell: a private-use character that neither they nor
the template hold. Whatever the template then spells whole is its own; the marks leave before anything is encoded.

So a template does not see a think token that a client left in an earlier answer. Where it knows of thoughts, such an
answer is given to it in two parts, as `reasoning_content` and `content`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

from deepwell.chat.conversation import Conversation, Message
from deepwell.chat.formats.base import Format, Layout, Token
from deepwell.chat.reading import PlainReader, Reader
from deepwell.chat.reading.calls import CallReader
from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.tokenizer import Tokenizer

_MARKS = range(0xF0000, 0xFFFFE)
_STEPS, _STEPS_PER_MESSAGE, _CHARACTERS = 100_000, 2_000, 1 << 20


@lru_cache(maxsize=8)
def jinja_format(tokenizer: Tokenizer) -> Format:
    """The format that runs the template of `tokenizer`. CheckpointError if there is none or it cannot be used."""
    import jinja2

    from deepwell.chat.formats.sandbox import ChatTemplate, Limit

    source = tokenizer.template
    if source is None:
        raise CheckpointError("this model brings no chat template; choose a prompt format by name")
    try:
        template = ChatTemplate(source)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise CheckpointError(f"chat template{f', line {line}' if line else ''}: {error}; {_CHOOSE}") from None
    except Limit as error:
        raise CheckpointError(f"chat template: {error}; {_CHOOSE}") from None
    stranger = _Stranger(template, source, tokenizer)
    return Format(
        name="jinja", marks=(), layout=stranger.layout, reader=stranger.reader, thinks=stranger.thinks, tools=False
    )


_CHOOSE = "choose a prompt format by name (--chat-format)"


class _Stranger:
    """A template, and the tokens it may write."""

    def __init__(self, template: Any, source: str, tokenizer: Tokenizer) -> None:
        self._template, self._source = template, source
        self._tokens = re.compile(_any_of(tokenizer.specials))
        self._marks = _Marking(tokenizer.specials)
        bos = "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos])
        self._named = {"bos_token": bos, "eos_token": tokenizer.decode(tokenizer.eos[:1])} | tokenizer.named
        self.thinks = "never"
        if "</think>" in source:
            self.thinks = "choice" if "enable_thinking" in source or "thinking" in source else "always"

    def layout(self, conversation: Conversation) -> Layout:
        text, mark = self._render(conversation)
        at = 0
        for found in self._tokens.finditer(text):
            yield text[at : found.start()].replace(mark, "")
            yield Token(found[0])
            at = found.end()
        yield text[at:].replace(mark, "")

    def reader(self, conversation: Conversation, tokenizer: Tokenizer) -> Reader:
        if self.thinks == "never":
            return PlainReader()
        text, _ = self._render(conversation)
        opened = text.rstrip().endswith("<think>")
        return CallReader(tokenizer, thinking=opened, calls=False)

    def _render(self, conversation: Conversation) -> tuple[str, str]:
        """What the template writes, and the mark in what is not its own."""
        messages = conversation.messages
        said = "".join(text for m in messages for text in (m.content, m.reasoning or ""))
        mark = next(char for code in _MARKS if (char := chr(code)) not in said and char not in self._source)
        last = messages[-1]
        asks = not (last.prefix and last.content)
        if last.prefix and last.reasoning:
            raise RequestError("the template of this model cannot continue a thought", "messages")
        kept = messages[:-1] if last.prefix and asks else messages
        written = [_plain(self._apart(m), self._marks, mark) for m in kept]
        values: dict[str, Any] = {
            "messages": written,
            "tools": None,
            "documents": None,
            "add_generation_prompt": asks,
            **self._named,
        }
        if conversation.thinking is not None:
            values |= {"enable_thinking": conversation.thinking, "thinking": conversation.thinking}
        text = self._run(values, len(said), len(messages))
        return (text if asks else _up_to(text, written[-1]["content"])), mark

    def _apart(self, message: Message) -> Message:
        """An earlier answer with the thought that a client left in its content taken out, as such templates do."""
        head, found, _ = message.content.partition("</think>")
        if not found or self.thinks == "never" or message.role != "assistant" or message.prefix:
            return message
        return Message.of(
            "assistant",
            message.content.split("</think>")[-1].lstrip("\n"),
            reasoning=message.reasoning or head.split("<think>")[-1].strip("\n"),
        )

    def _run(self, values: dict[str, Any], characters: int, messages: int) -> str:
        import jinja2

        from deepwell.chat.formats.sandbox import Budget, Limit, Refusal

        steps = _STEPS + _STEPS_PER_MESSAGE * messages + characters
        try:
            return str(self._template.render(values, Budget(steps, _CHARACTERS + 4 * characters)))
        except Refusal as error:
            raise RequestError(f"the template of this model refuses these messages: {error}", "messages") from None
        except Limit as error:
            raise RequestError(f"the template of this model {error}; {_CHOOSE}", "messages") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RequestError(f"the template of this model failed on these messages: {error}", "messages") from None


def _plain(message: Message, marks: _Marking, mark: str) -> dict[str, Any]:
    plain = {"role": message.role, "content": marks.put(message.content, mark)}
    if message.reasoning is not None:
        plain["reasoning_content"] = marks.put(message.reasoning, mark)
    return plain


def _up_to(text: str, content: str) -> str:
    """The text up to the end of a last message that the model continues."""
    for ending in (content, content.strip()):
        at = text.rfind(ending) if ending else -1
        if at >= 0:
            return text[: at + len(ending)]
    raise RequestError("the template of this model changes the message to continue; leave prefix out", "messages")


class _Marking:
    """Puts marks where a text spells a token, be it with white space in between that a template may take out, and where
    its begin or end could complete one that the template begins or ends."""

    def __init__(self, spellings: Sequence[str]) -> None:
        self._spellings = [re.sub(r"\s", "", spelling) for spelling in spellings]
        self._firsts = re.compile(f"[{''.join({re.escape(s[:1]) for s in self._spellings})}]") if spellings else None
        self._whole = re.compile(f"(?={_any_of(self._spellings)})")
        self._begins = {spelling[:n] for spelling in self._spellings for n in range(1, len(spelling))}
        self._ends = {spelling[-n:] for spelling in self._spellings for n in range(1, len(spelling))}
        self._longest = max(map(len, self._spellings), default=0)

    def put(self, text: str, mark: str) -> str:
        compact = "".join(text.split())
        found = [match.start() for match in self._inside(compact)]
        begin = self._could_end(compact)
        end = any(compact[-n:] in self._begins for n in range(1, self._longest))
        if not (found or begin or end):
            return text
        visible = [at for at, char in enumerate(text) if not char.isspace()]
        marked = {visible[at] + 1 for at in found}
        marked |= {visible[0]} if begin else set()
        marked |= {visible[-1] + 1} if end else set()
        return mark.join(text[start:end] for start, end in pairwise([0, *sorted(marked), len(text)]))

    def _inside(self, compact: str) -> Iterator[re.Match[str]]:
        possible = self._firsts is not None and self._firsts.search(compact)
        return self._whole.finditer(compact) if possible else iter(())

    def _could_end(self, compact: str) -> bool:
        """Whether a token that the template begins could go on with this text, to its end or to that of the text."""
        if not compact:
            return False
        within = len(compact) < self._longest and any(compact in spelling for spelling in self._spellings)
        return within or any(compact[:n] in self._ends for n in range(1, self._longest))


def _any_of(spellings: Sequence[str]) -> str:
    """An expression for any of many texts that few first characters tell from other texts quickly."""
    by_first = {first: list(rest) for first, rest in groupby(sorted(spellings), key=lambda text: text[:1])}
    return (
        "|".join(
            f"{re.escape(first)}(?:{'|'.join(re.escape(text[1:]) for text in sorted(rest, key=len, reverse=True))})"
            for first, rest in by_first.items()
        )
        or r"(?!)"
    )
