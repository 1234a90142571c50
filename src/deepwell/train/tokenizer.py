"""Training a byte-level BPE tokenizer with DeepSeek-V3's pre-tokenizer split and special tokens.

The result is two files that `tokenizers` and plain transformers load: tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from deepwell.chat import Conversation, Message
from deepwell.chat.fim import FIM_TOKENS
from deepwell.chat.formats import base, calls
from deepwell.chat.formats.v3 import DEEPSEEK_V3
from deepwell.errors import ConfigError
from deepwell.files import write_whole

BOS, EOS, PAD = base.BOS.spelling, base.EOS.spelling, "<｜▁pad▁｜>"
FIM_BEGIN, FIM_HOLE, FIM_END = FIM_TOKENS[0]
USER, ASSISTANT = base.USER.spelling, base.ASSISTANT.spelling
THINK, END_THINK = calls.THINK.spelling, calls.END_THINK.spelling
TOOL_TOKENS = tuple(
    token.spelling
    for token in (
        calls.CALLS,
        calls.END_CALLS,
        calls.CALL,
        calls.END_CALL,
        calls.OUTPUTS,
        calls.END_OUTPUTS,
        calls.OUTPUT,
        calls.END_OUTPUT,
        calls.SEP,
    )
)
RESERVED = 48
"""Special tokens take the ids below this; those without a meaning yet are placeholders."""
SMALLEST_VOCAB = RESERVED + 256

# DeepSeek-V3's split, applied in order: digits by three, ideographs and kana, then words, marks and blanks.
_SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"""|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)

# chat/formats/v3.py as a template, for other engines: system texts, then turns; every answer ends with the EOS token.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for m in messages if m['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m['content'] -%}"
    "{%- endfor -%}"
    "{{- bos_token + ns.system -}}"
    "{%- for m in messages -%}"
    f"{{%- if m['role'] == 'user' -%}}{{{{- '{USER}' + m['content'] -}}}}{{%- endif -%}}"
    f"{{%- if m['role'] == 'assistant' -%}}{{{{- '{ASSISTANT}' + m['content'] + eos_token -}}}}{{%- endif -%}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}' -}}}}{{%- endif -%}}"
)


def special_tokens() -> list[str]:
    """All special tokens in the order of their ids, DeepSeek-V3's spellings."""
    named = [BOS, EOS, PAD, FIM_HOLE, FIM_BEGIN, FIM_END, USER, ASSISTANT, "<|EOT|>", *TOOL_TOKENS, THINK, END_THINK]
    return named + [f"<｜place▁holder▁no▁{n}｜>" for n in range(RESERVED - len(named))]


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Learn `vocab` tokens (specials included) from `texts`. Byte-level: any text round-trips exactly."""
    if vocab < SMALLEST_VOCAB:
        raise ConfigError(f"vocab is {vocab}; {SMALLEST_VOCAB} is the least: {RESERVED} specials and 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in special_tokens()],
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    if tokenizer.get_vocab_size() != vocab:
        raise ConfigError(f"the text has only {tokenizer.get_vocab_size()} tokens to learn; vocab {vocab} is too large")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, *, chats: bool = False) -> None:
    """Write tokenizer.json and tokenizer_config.json; `context` becomes model_max_length.

    With `chats`, the template of conversations too, by which servers know a model that was trained to chat: a
    pretrained one has seen dialogues among other texts, and was not.
    """
    write_whole(folder / "tokenizer.json", f"{tokenizer.to_str(pretty=False)}\n".encode())
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if chats:
        config["chat_template"] = CHAT_TEMPLATE
    text = json.dumps(config, ensure_ascii=False, indent=2)
    write_whole(folder / "tokenizer_config.json", f"{text}\n".encode())


class SpecialIds:
    """Ids of the special tokens that training writes, looked up by their spelling."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos, self.eos, self.pad = (_id(tokenizer, token) for token in (BOS, EOS, PAD))
        self.fim_hole, self.fim_begin, self.fim_end = (
            _id(tokenizer, token) for token in (FIM_HOLE, FIM_BEGIN, FIM_END)
        )


def prompt_ids(question: str, tokenizer: Tokenizer) -> list[int]:
    """What a model reads before it answers a question, in DeepSeek-V3's format."""
    layout = DEEPSEEK_V3.layout(Conversation(messages=(Message.of("user", question),)))
    ids: list[int] = []
    for part in layout:
        if isinstance(part, base.Token):
            ids.append(_id(tokenizer, part.spelling))
        else:
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return ids


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ConfigError(f"the tokenizer lacks the special token {token}")
    return index
