"""Run any chat templates in our sandbox and in transformers, and say where the texts differ.

    python tests/chat/compare_templates.py FOLDER

FOLDER holds templates, *.jinja, of any models. Ends with exit code 1 if a text differs, or if only one refuses.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from conversations import answer, system, user  # noqa: E402

from deepwell.chat import Conversation, Message, find_format  # noqa: E402
from deepwell.chat.formats.base import Token  # noqa: E402
from deepwell.errors import DeepwellError  # noqa: E402
from fakes import BOS, EOS, tiny_tokenizer  # noqa: E402

TALKS = (
    [user("Hi < there")],
    [system("Be brief."), user(" Hi\n"), answer("Hello."), user("Go on, 深度求索 🐳")],
    [user("Hi"), Message.of("assistant", "Hello.", reasoning="Hm."), user("{{ x }}"), answer("So."), user("And?")],
)


def theirs(conversation: Conversation, template: str) -> str | None:
    wishes = {} if conversation.thinking is None else {"enable_thinking": True, "thinking": True}
    messages = [
        {"role": m.role, "content": m.content} | ({"reasoning_content": m.reasoning} if m.reasoning else {})
        for m in conversation.messages
    ]
    tokens = {"bos_token": BOS, "eos_token": EOS}
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **tokens, **wishes
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
    differing, paths = 0, sorted(folder.glob("*.jinja"))
    talks = [Conversation(messages=tuple(talk), thinking=wish) for talk in TALKS for wish in (None, True)]
    for path in paths:
        template = path.read_text("utf-8")
        found = [(theirs(talk, template), ours(talk, template)) for talk in talks]
        if any(wanted != got for wanted, got in found):
            differing += 1
            print(f"{path.name}: {next((wanted, got) for wanted, got in found if wanted != got)}"[:1000])
    print(f"{len(paths) - differing} of {len(paths)} templates: the same in {len(talks)} conversations")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
