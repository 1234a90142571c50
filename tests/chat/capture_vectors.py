"""Render conversations with the checkpoints' own chat templates, as transformers does, and keep the texts.

    python tests/chat/capture_vectors.py FOLDER

FOLDER holds one template per format, NAME.jinja (NAME as in `deepwell.chat.FORMATS`); the templates themselves are not
part of this project. For each one, tests/chat/vectors/NAME.json gets what the template makes of the conversations in
conversations.py that format and template agree on; how ours differ on purpose is tested in test_formats.py.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from pathlib import Path
from typing import Any

import msgspec
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from conversations import VECTORS, Case, Vectors, cases_of  # noqa: E402

from deepwell.chat import Conversation, Message, detect  # noqa: E402
from fakes import BOS, EOS, tiny_tokenizer  # noqa: E402


def plain(message: Message) -> dict[str, Any]:
    """A message as templates expect it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        found["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    return found


def rendered(conversation: Conversation, template: str) -> str:
    wishes = {} if conversation.thinking is None else {"thinking": conversation.thinking}
    texts, _ = render_jinja_template(
        conversations=[[plain(message) for message in conversation.messages]],
        chat_template=template,
        add_generation_prompt=True,
        bos_token=BOS,
        eos_token=EOS,
        **wishes,
    )
    return str(texts[0])


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text("utf-8")
        tokenizer = copy.copy(tiny_tokenizer())
        tokenizer.template = template
        if (shown := detect(tokenizer).name) != path.stem:
            raise SystemExit(f"{path} is detected as {shown}")
        cases = [Case.of(conversation, rendered(conversation, template)) for conversation in cases_of(path.stem)]
        digest = hashlib.sha256(template.encode()).hexdigest()
        vectors = Vectors(transformers.__version__, digest, cases)
        out = VECTORS / f"{path.stem}.json"
        out.write_bytes(msgspec.json.format(msgspec.json.encode(vectors), indent=1) + b"\n")
        print(f"{out.name}: {len(cases)} conversations")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
