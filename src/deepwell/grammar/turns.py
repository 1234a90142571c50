"""The grammar of a whole turn: what an answer to a conversation may be, its calls too."""

from __future__ import annotations

from deepwell.chat import Conversation, Tool
from deepwell.chat.formats.base import CallSyntax, Format, Token
from deepwell.errors import RequestError
from deepwell.grammar.calls import Calls
from deepwell.grammar.source import Grammar, of_structure, part_of, slashed, whole
from deepwell.weights.tokenizer import Tokenizer


def grammar_of(conversation: Conversation, format: Format, tokenizer: Tokenizer) -> Grammar | None:
    """What the answer is held to, None if it is free. Raises RequestError, naming the field, for what no grammar can
    hold.

    An answer of a structure may be a call too, where tools are offered. Tools that are not strict may be called with
    any JSON object.
    """
    structure, choice = conversation.structure, conversation.choice
    tools = {
        f"tools[{index}].function.parameters": tool
        for index, tool in enumerate(conversation.tools)
        if choice != "none" and (not isinstance(choice, Tool) or choice == tool)
    }
    strict = next((field for field, tool in tools.items() if tool.strict), None)
    if conversation.must_call:
        return None if strict is None else _calls_alone(conversation, _syntax(format, strict), tokenizer, tools, strict)
    if structure is not None:
        _check_begun(conversation, structure.field)
    if strict is None and (structure is None or not tools):
        return None if structure is None else of_structure(structure)
    field = strict or (structure.field if structure is not None else "")
    calls = Calls(_syntax(format, field), tokenizer, tools)
    begin = _first_token(calls.syntax, next(iter(tools.values())).name, tokenizer, field)
    if structure is not None:
        answer, rule = [part_of(structure) | {"name": "answer"}], f"start: @answer | {calls.whole()}"
        schemas = [structure.field] if structure.kind == "json" else []
    else:
        answer, schemas = [], []
        none = f" & ~/(?s:.*)({'|'.join(calls.syntax.spelled)})(?s:.*)/" if calls.syntax.spelled else ""
        rule = f"start: TEXT | OPENING {calls.whole(begun=begin)}\nOPENING: /(?s:.*){slashed(begin)}/{none}"
        if not begin:
            rule = f"start: TEXT ({calls.whole()})?"
        rule += f"\nTEXT: /(?s:.*)/{none}"
    lark = "\n".join((rule, *calls.rules))
    return whole([{"lark_grammar": lark}, *answer, *calls.parts], field, [*schemas, *calls.fields])


def _calls_alone(
    conversation: Conversation, syntax: CallSyntax, tokenizer: Tokenizer, tools: dict[str, Tool], field: str
) -> Grammar:
    if syntax.tags:
        _first_token(syntax, "", tokenizer, field)
    calls = Calls(syntax, tokenizer, tools)
    several = not isinstance(conversation.choice, Tool)
    lark = "\n".join((f"start: {calls.opened(syntax.opened(conversation), several)}", *calls.rules))
    return whole([{"lark_grammar": lark}, *calls.parts], field, calls.fields)


def _syntax(format: Format, field: str) -> CallSyntax:
    if format.calls is None:
        raise RequestError(
            f"{field}: prompt format {format.name} of this model has no calls that a grammar could hold", field
        )
    return format.calls


def _first_token(syntax: CallSyntax, name: str, tokenizer: Tokenizer, field: str) -> str:
    """The text before the first template token of a block of calls, which no text that is an answer can spell.

    Raises RequestError if there is no such token: calls could not be told from the answer then.
    """
    text = ""
    for part in (*syntax.begin, *syntax.head(name)):
        if isinstance(part, Token) and tokenizer.special(part.spelling) is not None:
            return text
        text += part.spelling if isinstance(part, Token) else part
    raise RequestError(
        f'{field} cannot be held to unless a call must come: this model writes calls as text; send "tool_choice": '
        '"required" or "none"',
        field,
    )


def _check_begun(conversation: Conversation, field: str) -> None:
    """DeepSeek's rule: what is begun by the client has no structure."""
    last = conversation.messages[-1]
    if last.prefix and last.content:
        where = f"messages[{len(conversation.messages) - 1}].prefix"
        raise RequestError(f"{where} with a begun answer is not allowed together with {field}", where)
