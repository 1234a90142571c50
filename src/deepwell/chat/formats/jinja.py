"""The format of strangers: their own chat template, run in a sandbox.

The template writes text, in which its tokens must become ids and the same spelling in what users wrote must not. So the
users' texts go in with a mark inside of every template token they spell (marking.py). Whatever the template then spells
whole is its own; the marks leave before anything is encoded.

So a template does not see a think token that a client left in an earlier answer. Where it knows of thoughts, such an
answer is given to it in two parts, as `reasoning_content` and `content`.

Tools are for the template to list, where it knows of them and teaches one of the shapes of calls that we read; some
models bring a template of their own for conversations with tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import msgspec

from deepwell.chat.conversation import Call, Conversation, Message, Tool, without_developers
from deepwell.chat.formats.base import CallSyntax, Format, Layout, Parts, Token
from deepwell.chat.formats.calls import offered, system_text
from deepwell.chat.formats.marking import Marking, any_of, texts_in, unused_mark
from deepwell.chat.reading import PlainReader, Reader
from deepwell.chat.reading.json_calls import HERMES, LLAMA, JsonCallReader, Shape
from deepwell.chat.reading.json_text import object_of
from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepwell.chat.formats.budget import Budget

_STEPS, _STEPS_PER_MESSAGE, _MOST_STEPS, _CHARACTERS = 100_000, 500, 1_000_000, 1 << 20
"""A hundred thousand steps take less than a second; published templates take about 20 for a message."""
_DEPTH = 64


@lru_cache(maxsize=8)
def jinja_format(tokenizer: Tokenizer) -> Format:
    """The format that runs the template of `tokenizer`. CheckpointError if there is none or it cannot be used."""
    if tokenizer.template is None:
        raise CheckpointError("this model brings no chat template; choose a prompt format by name")
    stranger = _Stranger(tokenizer.template, tokenizer.tool_template, tokenizer)
    return Format(
        name="jinja",
        marks=(),
        layout=stranger.layout,
        reader=stranger.reader,
        thinks=stranger.thinks,
        tools=stranger.shape is not None,
        developers=True,
        foreign=True,
        efforts="reasoning_effort" in tokenizer.template,
        calls=None if stranger.shape is None else _call_syntax(stranger.shape),
    )


def _call_syntax(shape: Shape) -> CallSyntax:
    mark = () if shape.bare else (Token(shape.begin, may_be_text=True),)
    end = (Token(shape.end, may_be_text=True),) if shape.end else ()

    def opening(name: str | None) -> Parts:
        return (*mark, shape.opening(name).removeprefix("" if shape.bare else shape.begin))

    def opened(conversation: Conversation) -> Parts:
        return opening(conversation.choice.name if isinstance(conversation.choice, Tool) else None)

    between = ("; " if shape.bare else "\n",)
    return CallSyntax(head=opening, tail=("}" + shape.between, *end), between=between, opened=opened)


def _compiled(source: str) -> Any:
    import jinja2

    from deepwell.chat.formats.budget import Limit
    from deepwell.chat.formats.sandbox import ChatTemplate

    try:
        return ChatTemplate(source)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise CheckpointError(f"chat template{f', line {line}' if line else ''}: {error}; {_CHOOSE}") from None
    except Limit as error:
        raise CheckpointError(f"chat template: {error}; {_CHOOSE}") from None


_LONE = re.compile("[\ud800-\udfff]")
_CHOOSE = "choose a prompt format by name (--chat-format)"

_OTHER_TAGS = ("<function=", "<arg_key>", "<invoke", "<parameter=")


def shape_of(source: str) -> Shape | None:
    """The shape of calls that a template teaches; None if it knows of no tools, or has a shape that we do not read."""
    text = source.replace("\\", "")
    if not re.search(r"\btools\b", text) or any(tag in text for tag in _OTHER_TAGS):
        return None
    if HERMES.begin in text and HERMES.end in text and '"arguments' in text:
        return HERMES
    named = LLAMA.begin in text or '{"name": function name' in text
    return LLAMA if named and '"parameters": ' in text else None


class _Stranger:
    """A template, perhaps another one for conversations with tools, and the tokens they may write."""

    def __init__(self, template: str, tool_template: str | None, tokenizer: Tokenizer) -> None:
        self._template = _compiled(template)
        self._tool_template = self._template if tool_template is None else _compiled(tool_template)
        self._source = source = template + (tool_template or "")
        self._tokens = re.compile(any_of(tokenizer.specials))
        self._marks = Marking(tokenizer.specials)
        bos = "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos])
        self._named = {"bos_token": bos, "eos_token": tokenizer.decode(tokenizer.eos[:1])} | tokenizer.named
        self._last: tuple[Conversation, tuple[str, str]] | None = None
        self.shape = shape_of(tool_template or template)
        self.thinks = "never"
        if "</think>" in source:
            self.thinks = "choice" if "enable_thinking" in source or "thinking" in source else "always"

    def layout(self, conversation: Conversation) -> Layout:
        text, mark = self._render(conversation)
        text += self._called(conversation) or ""
        at = 0
        for found in self._tokens.finditer(text):
            yield text[at : found.start()].replace(mark, "")
            yield Token(found[0])
            at = found.end()
        yield text[at:].replace(mark, "")

    def reader(self, conversation: Conversation, tokenizer: Tokenizer) -> Reader:
        names = [tool.name for tool in offered(conversation)] if self.shape else []
        if self.thinks == "never" and not names:
            return PlainReader()
        thinking = False
        if self.thinks != "never" and not conversation.must_call:
            thinking = self._render(conversation)[0].rstrip().endswith("<think>")
        last = conversation.messages[-1]
        return JsonCallReader(
            tokenizer,
            self.shape or HERMES,
            names,
            thinking=thinking,
            thinks=self.thinks != "never",
            continues=last.prefix and bool(last.content),
            called=self._called(conversation),
        )

    def _called(self, conversation: Conversation) -> str | None:
        """What the prompt gives of a call that must come."""
        if self.shape is None or not conversation.must_call:
            return None
        return self.shape.opening(conversation.choice.name if isinstance(conversation.choice, Tool) else None)

    def _render(self, conversation: Conversation) -> tuple[str, str]:
        """What the template writes, and the mark in what is not its own. The prompt and its reader ask one after the
        other."""
        last = self._last
        if last is None or last[0] is not conversation:
            last = self._last = (conversation, self._rendered(conversation))
        return last[1]

    def _rendered(self, conversation: Conversation) -> tuple[str, str]:
        """Messages that the template refuses are told in another way, if there is one."""
        from deepwell.chat.formats.budget import Budget

        told = conversation if "developer" in self._source else without_developers(conversation)
        refusals: list[_Refused] = []
        characters = _size(told)
        steps = _STEPS + _STEPS_PER_MESSAGE * (len(told.messages) + len(told.tools)) + characters // 8
        budget = Budget(min(steps, _MOST_STEPS), _CHARACTERS + 4 * characters)
        for messages in _ways(told.messages):
            try:
                return self._written(msgspec.structs.replace(told, messages=messages), budget)
            except _Refused as refusal:
                refusals.append(refusal)
        raise refusals[0]

    def _written(self, conversation: Conversation, budget: Budget) -> tuple[str, str]:
        messages = conversation.messages
        last = messages[-1]
        asks = not (last.prefix and last.content)
        if last.prefix and last.reasoning:
            raise RequestError("the template of this model cannot continue a thought", "messages")
        kept = [self._apart(message) for message in (messages[:-1] if last.prefix and asks else messages)]
        told = [self._told(message, lambda value: value) for message in kept]
        tools = [_listed(tool) for tool in offered(conversation)]
        texts = [text for value in (told, tools) for text in texts_in(value)]
        mark = unused_mark([*texts, self._source])
        written = [self._told(message, partial(self._marks.put_all, mark=mark)) for message in kept]
        values: dict[str, Any] = {
            "messages": written,
            "tools": self._marks.put_all(tools, mark, borders=False) or None,
            "documents": None,
            "add_generation_prompt": asks,
            **self._named,
        }
        thinking = False if conversation.must_call and self.thinks == "choice" else conversation.thinking
        if thinking is not None:
            values |= {"enable_thinking": thinking, "thinking": thinking}
        if conversation.effort is not None:
            values["reasoning_effort"] = conversation.effort
        text = self._run(values, budget)
        if _LONE.search(text) and not any(map(_LONE.search, texts)):
            raise RequestError(f"the template of this model writes a lone surrogate, which no text can hold; {_CHOOSE}")
        return (text if asks else _up_to(text, written[-1]["content"])), mark

    def _told(self, message: Message, put: Callable[[Any], Any]) -> dict[str, Any]:
        """A message as templates know it; `put` puts marks into what somebody wrote."""
        told: dict[str, Any] = {"role": message.role, "content": put(message.content)}
        if message.reasoning is not None:
            told["reasoning_content"] = put(message.reasoning)
        if message.answers is not None:
            told["tool_call_id"] = put(message.answers)
        if message.calls:
            told["tool_calls"] = [
                {"id": put(call.id), "type": "function", "function": self._function(call, put)}
                for call in message.calls
            ]
        return told

    def _function(self, call: Call, put: Callable[[Any], Any]) -> dict[str, Any]:
        """What was called, its arguments as an object, which templates write out as JSON. What is none is given as it
        is to a template that takes texts, and else as the one argument `arguments`."""
        arguments: Any = object_of(call.arguments, _DEPTH)
        if arguments is None:
            takes_text = "arguments is string" in self._source
            arguments = call.arguments if takes_text else {"arguments": call.arguments}
        return {"name": put(call.name), "arguments": put(arguments)}

    def _apart(self, message: Message) -> Message:
        """An earlier answer with the thought that a client left in its content taken out, as such templates do."""
        head, found, _ = message.content.partition("</think>")
        if not found or self.thinks == "never" or message.role != "assistant" or message.prefix:
            return message
        return Message.of(
            "assistant",
            message.content.split("</think>")[-1].lstrip("\n"),
            reasoning=message.reasoning or head.split("<think>")[-1].strip("\n"),
            calls=message.calls,
        )

    def _run(self, values: dict[str, Any], budget: Budget) -> str:
        from deepwell.chat.formats.budget import Limit
        from deepwell.chat.formats.sandbox import Refusal

        template = self._tool_template if values["tools"] else self._template
        try:
            return str(template.render(values, budget))
        except Refusal as error:
            raise _Refused(f"the template of this model refuses these messages: {error}", "messages") from None
        except Limit as error:
            raise RequestError(f"the template of this model {error}; {_CHOOSE}", "messages") from None
        except Exception as error:  # whatever a stranger's code runs into is its own fault
            fault = f"{type(error).__name__}: {error}"
            raise _Refused(f"the template of this model failed on these messages: {fault}", "messages") from None


class _Refused(RequestError):
    """A template does not take these messages; it may take them told in another way."""


def _size(conversation: Conversation) -> int:
    """Characters of a conversation."""
    texts = texts_in([_listed(tool) for tool in conversation.tools])
    return sum(map(len, texts)) + sum(
        len(message.content) + len(message.reasoning or "") + sum(len(call.arguments) for call in message.calls)
        for message in conversation.messages
    )


def _listed(tool: Tool) -> dict[str, Any]:
    """A tool as templates know it, who rely on a description and an object of parameters."""
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function | ({} if tool.strict is None else {"strict": tool.strict})}


def _ways(messages: tuple[Message, ...]) -> Iterable[tuple[Message, ...]]:
    """The messages, and ways to tell them to templates that take one call a turn, or one system text, the first."""
    apart = tuple(_one_by_one(messages))
    system = system_text(messages)
    others = (message for message in apart if message.role != "system")
    return dict.fromkeys((messages, apart, (Message.of("system", system), *others) if system else apart))


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, each further call of a turn as a turn of its own before its result."""
    waiting: dict[str | None, Message] = {}
    for message in messages:
        calls = message.calls
        if message.answers in waiting:
            yield waiting.pop(message.answers)
        waiting |= {call.id: Message("assistant", (call,)) for call in calls[1:]}
        yield msgspec.structs.replace(message, parts=tuple(part for part in message.parts if part not in calls[1:]))


def _up_to(text: str, content: str) -> str:
    """The text up to the end of a last message that the model continues."""
    for ending in (content, content.strip()):
        at = text.rfind(ending) if ending else -1
        if at >= 0:
            return text[: at + len(ending)]
    raise RequestError("the template of this model changes the message to continue; leave prefix out", "messages")
