"""What V3.2, V4 and V4.1 share: tools and calls in DSML, tags whose names follow the token `｜DSML｜`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from deepwell.chat.conversation import BLANK_LINE, Call, Conversation, Message, Tool
from deepwell.chat.formats.base import CallSyntax, Layout, Token
from deepwell.chat.reading.dsml import DsmlReader, Start
from deepwell.chat.reading.dsml_tags import OPENERS
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

DSML = Token("｜DSML｜", may_be_text=True)
THINK = Token("<think>")
END_OF_THINK = Token("</think>")

_TEMPLATE_TOKENS = {token.spelling: token for token in (DSML, THINK, END_OF_THINK)}
_BORDERS = re.compile(f"({'|'.join(map(re.escape, _TEMPLATE_TOKENS))})")
_WHOLE_NUMBERS = range(-(1 << 63), 1 << 64)


def _python_float(value: float) -> str:
    return repr(value)


def _javascript_float(value: float) -> str:
    """As `_python_float`, but exponents are not padded and begin below 0.00001."""
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if exponent == "-05":
        sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
        return f"{sign}0.0000{digits.replace('.', '')}"
    return f"{mantissa}e-{exponent.lstrip('-0')}" if exponent.startswith("-") else text


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How a family spells DSML: the names of its tags, and the numbers and empty calls in them."""

    block: str
    invoke: str = "invoke"
    parameter: str = "parameter"
    nothing: str = "\n"
    """Between the tags of a call without arguments, besides the line break after the first."""
    float_text: Callable[[float], str] = _python_float
    big_numbers: bool = False
    """Whether integers beyond 64 bits stay integers. Otherwise they become floats."""
    any_json: str = ""
    """What is said where the answer must be some JSON object, if that has words of its own."""


V32 = Dialect(block="function_calls", big_numbers=True)
_ANY_JSON = "You are a helpful assistant designed to output JSON.\n## Response Format:\n\nReply with JSON object ONLY."
V4 = Dialect(block="tool_calls", nothing="", float_text=_javascript_float, any_json=_ANY_JSON)
V41 = Dialect(block=" calls", invoke=" invoke", parameter=" parameter")


def template(text: str) -> Layout:
    """A text of the format itself: what spells a template token in it is one. Never for what people wrote."""
    for part in _BORDERS.split(text):
        if part:
            yield _TEMPLATE_TOKENS.get(part, part)


def offered(conversation: Conversation) -> tuple[Tool, ...]:
    """The tools that the model gets to see: none, all, or the one that it must call."""
    if isinstance(conversation.choice, Tool):
        return (conversation.choice,)
    return () if conversation.choice == "none" else conversation.tools


def thinks(conversation: Conversation, by_habit: bool) -> bool:
    """Whether the answer begins with a thought. A demanded call rules it out, and the effort "none".

    A thought to continue asks for it where nothing else says a word.
    """
    if conversation.must_call:
        return False
    last = conversation.messages[-1]
    if conversation.thinking is None:
        return (by_habit or (in_thought(last) and bool(last.reasoning))) and conversation.effort != "none"
    return conversation.thinking


def open_block(dialect: Dialect) -> Layout:
    yield from template(f"\n\n<｜DSML｜{dialect.block}>\n")


def call_syntax(dialect: Dialect) -> CallSyntax:
    """How `calls_text` writes calls."""
    begin = ("\n\n<", DSML, f"{dialect.block}>\n")
    return CallSyntax(
        begin=begin,
        head=lambda name: ("<", DSML, f'{dialect.invoke} name="{name}">\n'),
        tail=("</", DSML, f"{dialect.invoke}>\n"),
        end=("</", DSML, f"{dialect.block}>"),
        opened=lambda conversation: begin,
        tags=True,
        parameter=("<", DSML, f'{dialect.parameter} name="'),
        parameter_end=(DSML, f"{dialect.parameter}>\n"),
        nothing=(dialect.nothing,),
        spelled=OPENERS,
    )


def calls_text(calls: Sequence[Call], dialect: Dialect) -> Layout:
    """The calls of a turn as a block, after a blank line; nothing if there are none."""
    if not calls:
        return
    yield from open_block(dialect)
    for call in calls:
        yield from ("<", DSML, f'{dialect.invoke} name="{call.name}">\n')
        yield from _parameters(call.arguments, dialect)
        yield from ("</", DSML, f"{dialect.invoke}>\n")
    yield from ("</", DSML, f"{dialect.block}>")


def _parameters(arguments: str, dialect: Dialect) -> Layout:
    """The arguments as tags. Text that is no JSON object becomes the one parameter `arguments`."""
    values = _object(arguments, dialect)
    if not values:
        yield dialect.nothing
    for name, value in values.items():
        is_text = isinstance(value, str)
        yield from ("<", DSML, f'{dialect.parameter} name="{name}" string="{str(is_text).lower()}">')
        yield value if is_text else json_text(value, dialect)
        yield from ("</", DSML, f"{dialect.parameter}>\n")


def _object(arguments: str, dialect: Dialect) -> dict[str, Any]:
    def whole(digits: str) -> int | float:
        return -0.0 if digits == "-0" and not dialect.big_numbers else int(digits)

    def finite(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise ValueError("too large")
        return value

    def refuse(name: str) -> float:
        raise ValueError(name)

    try:
        values = json.loads(arguments, parse_int=whole, parse_float=finite, parse_constant=refuse)
        json_text(values, dialect).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {"arguments": arguments}


def json_text(value: Any, dialect: Dialect, room: int = 127) -> str:
    """JSON with a blank after commas and colons, letters of all scripts as they are. ValueError if nested deeper than
    `room`."""
    if room < 0:
        raise ValueError("nested too deeply")
    if type(value) is int and value not in _WHOLE_NUMBERS and not dialect.big_numbers:
        value = float(value)
    if isinstance(value, float):
        return dialect.float_text(value)
    if isinstance(value, dict):
        members = (f"{_quoted(name)}: {json_text(part, dialect, room - 1)}" for name, part in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list):
        return f"[{', '.join(json_text(part, dialect, room - 1) for part in value)}]"
    return _quoted(value)


def _quoted(value: str | int | bool | None) -> str:
    return json.dumps(value, ensure_ascii=False)


def tool_schemas(tools: Sequence[Tool], fields: Callable[[Tool], dict[str, Any]], dialect: Dialect) -> str:
    """What a model is told of its tools, one JSON object a line. RequestError if one is nested too deeply."""
    lines = []
    for index, tool in enumerate(tools):
        try:
            lines.append(json_text(fields(tool), dialect))
        except ValueError as error:
            where = f"tools[{index}].function.parameters"
            raise RequestError(f"{where} is {error}; at most 126 levels are allowed", where) from None
    return "\n".join(lines)


def response_format(conversation: Conversation, dialect: Dialect) -> str:
    """What a model is told of the JSON that its answer must be, after a blank line; nothing if it is free, or a text of
    another kind, of which these models know nothing. RequestError for a schema that is nested too deeply."""
    structure = conversation.structure
    if structure is None or structure.kind != "json":
        return ""
    if structure.schema is None and dialect.any_json:
        return BLANK_LINE + dialect.any_json
    try:
        schema = json_text({"type": "json_object"} if structure.schema is None else structure.schema, dialect)
    except ValueError as error:
        raise RequestError(f"{structure.field} is {error}; at most 126 levels are allowed", structure.field) from None
    return f"{BLANK_LINE}## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{schema}"


def refuse_role(messages: Iterable[Message], role: str, instead: str) -> None:
    """RequestError that names the first message of a role that a format does not have."""
    for index, message in enumerate(messages):
        if message.role == role:
            where = f"messages[{index}].role"
            raise RequestError(f"{where}: this model has no role {role}; use {instead}", where)


def in_thought(message: Message) -> bool:
    """Whether a message is a prefix that the model continues before its answer, within its thought."""
    return message.prefix and not message.content and not message.calls


def dsml_reader(conversation: Conversation, tokenizer: Tokenizer, thinking: bool) -> DsmlReader:
    """Of an answer that begins where the prompt of `conversation` ended."""
    return DsmlReader(tokenizer, _start(conversation, thinking), bool(offered(conversation)))


def _start(conversation: Conversation, thinking: bool) -> Start:
    last = conversation.messages[-1]
    if conversation.must_call:
        return Start.CALLS
    if last.task is not None:
        return Start.CONTENT
    if thinking and (in_thought(last) or not last.prefix):
        return Start.MID_THOUGHT if last.prefix and last.reasoning else Start.THOUGHT
    return Start.MID_CONTENT if last.prefix and last.content else Start.CONTENT
