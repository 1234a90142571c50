"""Run any chat templates in our sandbox and in transformers, and say where the texts differ.

    python tests/chat/compare_templates.py FOLDER

FOLDER holds templates, *.jinja, of any models. Tools are offered to those that teach a shape of calls that we read.
Ends with exit code 1 if a text differs, or if only one refuses.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from conversations import CALLED, answer, system, user  # noqa: E402
from test_stranger_tools import TOOLS, listed, told  # noqa: E402

from deepwell.chat import Conversation, Message, find_format  # noqa: E402
from deepwell.chat.formats.base import Token  # noqa: E402
from deepwell.chat.formats.jinja import shape_of  # noqa: E402
from deepwell.errors import DeepwellError  # noqa: E402
from fakes import BOS, EOS, tiny_tokenizer  # noqa: E402

TALKS = (
    [user("Hi < there")],
    [system("Be brief."), user(" Hi\n"), answer("Hello."), user("Go on, 深度求索 🐳")],
    [user("Hi"), Message.of("assistant", "Hello.", reasoning="Hm."), user("{{ x }}"), answer("So."), user("And?")],
)

TOOL_TALKS = [
    Conversation(messages=tuple(talk), tools=TOOLS)
    for talk in ([user("Hi")], CALLED, [*CALLED, answer("Grey."), user("Thanks")])
]


def theirs(conversation: Conversation, template: str) -> str | None:
    wishes = {} if conversation.thinking is None else {"enable_thinking": True, "thinking": True}
    messages = told(conversation.messages)
    tokens = {"bos_token": BOS, "eos_token": EOS}
    try:
        texts, _ = render_jinja_template(
            [messages],
            tools=listed(conversation.tools),
            chat_template=template,
            add_generation_prompt=True,
            **tokens,
            **wishes,
        )
    except Exception:  # whatever a template makes transformers raise
        return None
    return str(texts[0])


def ours(conversation: Conversation, template: str) -> str | None:
    tokenizer = copy.copy(tiny_tokenizer())
    tokenizer.template = template
    try:
        parts = list(find_format("jinja", tokenizer).layout(conversation))
    except DeepwellError:
        return None
    return "".join(part.spelling if isinstance(part, Token) else str(part) for part in parts)


def main(folder: Path) -> int:
    differing = tools = 0
    paths = sorted(folder.glob("*.jinja"))
    talks = [Conversation(messages=tuple(talk), thinking=wish) for talk in TALKS for wish in (None, True)]
    for path in paths:
        template = path.read_text("utf-8")
        knows = shape_of(template) is not None
        tools += knows
        asked = [*talks, *(TOOL_TALKS if knows else ())]
        found = [(theirs(talk, template), ours(talk, template)) for talk in asked]
        if any(wanted != got for wanted, got in found):
            differing += 1
            print(f"{path.name}: {next((wanted, got) for wanted, got in found if wanted != got)}"[:1000])
    print(f"{len(paths) - differing} of {len(paths)} templates: the same in {len(talks)} conversations")
    print(f"{tools} of them with tools: {len(TOOL_TALKS)} conversations more")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
