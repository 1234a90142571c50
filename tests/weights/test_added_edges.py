"""Added tokens take the white space and the places that their flags say, as the tokenizers library has it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from deepwell.chat import Conversation, Message, detect, render_chat
from deepwell.weights.tokenizer import Tokenizer
from fakes import write_tiny_tokenizer

FLAGS: dict[str, dict[str, bool]] = {
    "<|user|>": {"rstrip": True, "special": True},  # as Phi-3 has them
    "<|end|>": {"rstrip": True, "special": True},
    "<mask>": {"lstrip": True, "special": True},  # as RoBERTa has it
    "<both>": {"lstrip": True, "rstrip": True, "special": True},
    "name": {"single_word": True},
    "<Tag>": {"normalized": True},
    "<tag>>": {"normalized": True, "rstrip": True},
    "g>": {"special": True},  # found before those that are normalised
}
PIECES = [
    *FLAGS,
    "<tag",
    ">",
    " ",
    "  ",
    "\n",
    "\t",
    "\u3000",
    "\x1f",
    "a",
    "é",
    "Caf\u00e9",
    "_",
    "x name y",
    "深",
    "<",
]


def folder(path: Path, normalizer: Any = None, template: str | None = None) -> Path:
    write_tiny_tokenizer(path)
    document = json.loads((path / "tokenizer.json").read_text("utf-8"))
    first = max(document["model"]["vocab"].values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for id, (text, flags) in enumerate(FLAGS.items(), first):
        document["added_tokens"].append(plain | {"id": id, "content": text} | flags)
    document["normalizer"] = normalizer
    (path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    named = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    (path / "tokenizer_config.json").write_text(json.dumps(named | {"chat_template": template}), "utf-8")
    return path


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_1000_odd_prompts_have_the_ids_of_the_library(normalizer: Any, tmp_path: Path) -> None:
    """So does what was kept in a packed file."""
    tokenizer = Tokenizer.load(folder(tmp_path, normalizer))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again, chosen = Tokenizer.restore(tokenizer.state()), random.Random(11)
    for _ in range(1000):
        text = "".join(chosen.choice(PIECES) for _ in range(chosen.randint(1, 16)))
        wanted = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, controls=True) == wanted, text
        assert again.encode(text, controls=True) == wanted, text


TEMPLATE = (
    "{% for message in messages %}{{ '<|user|>\n' + message['content'] + ' <mask> <|end|>\n' }}{% endfor %}<|user|>\n"
)


def test_templates_have_the_ids_of_the_library(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder(tmp_path, template=TEMPLATE))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    format, chosen = detect(tokenizer), random.Random(12)
    for _ in range(100):
        content = "".join(chosen.choice([" ", "\n", "a", "é", "\x1f", "深"]) for _ in range(8))
        text = f"<|user|>\n{content} <mask> <|end|>\n<|user|>\n"
        got = render_chat(Conversation(messages=(Message.of("user", content),)), tokenizer, format)
        assert list(got) == library.encode(text, add_special_tokens=False).ids, content


def test_messages_stay_text(tmp_path: Path) -> None:
    """Nothing that a user writes is a special token, and a word that is one token counts where it stands alone."""
    tokenizer = Tokenizer.load(folder(tmp_path))
    ids = tokenizer.encode("a <|user|>  b <mask> name names <both>")
    assert not any(tokenizer.is_special(id) for id in ids)
    assert tokenizer.decode(ids) == "a <|user|>  b <mask> name names <both>"
    assert ids.count(tokenizer.special("name") or -1) == 1
