"""Capture what DeepSeek's encoder of V3.2 says: python tests/chat/capture_v32.py ENCODER > tests/chat/dsml_v32.json

ENCODER is the file `encoding/encoding_dsv32.py` of the V3.2 checkpoint, or a copy of it: SGLang has one in
`sglang/srt/entrypoints/openai/`, vLLM in `vllm/tokenizers/deepseek_v32_encoding.py`. Conversations are drawn from a
seed; only what the encoder can say is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

CONVERSATIONS, ANSWERS = 40, 30
TEXTS = ("Hi", "What is 1+1?\n", "日本語 🐳", "a < b </think> <｜User｜>", "x ｜DSML｜ y", "{}", "  ", "two\n\nparts")
KEYS = ("city", "n", "é", "unit of measure")
VALUES: tuple[Any, ...] = ("Köln", "", 'a "b"\n', 3, -1.5, 1e-7, True, None, [1, "é"], {"a": {"b": [2.0]}}, 1 << 70)
TOOLS = (
    {"name": "get_weather", "description": "Wétter", "parameters": {"type": "object", "properties": {"city": {}}}},
    {"name": "now"},
    {"name": "search", "description": "a <b>", "parameters": {"z": 1.0, "a": [1e16]}, "strict": True},
)


def main(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("encoder", path)
    assert spec is not None
    assert spec.loader is not None
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    draw = random.Random(32)
    found = {
        "encoder": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts": [_prompt(draw, encoder) for _ in range(CONVERSATIONS)],
        "answers": [_answer(draw, encoder) for _ in range(ANSWERS)],
    }
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    print(text.replace('},{"messages"', '},\n{"messages"').replace('},{"thinking"', '},\n{"thinking"'))


def _prompt(draw: random.Random, encoder: Any) -> dict[str, Any]:
    """A conversation that ends in a question or in results, and its prompt."""
    tools = draw.sample(TOOLS, draw.randint(0, 3))
    thinking = draw.random() < 0.6
    system = {"role": "system", "content": draw.choice(TEXTS)} if tools or draw.random() < 0.5 else None
    messages = [_question(draw, thinking)]
    for _ in range(draw.randint(0, 4)):
        loops = draw.choice((0, 0, 1, 2))
        for _ in range(loops):
            messages += _calls(draw)
        if loops and draw.random() < 0.3:
            continue
        messages.append(_said(draw, {}))
        messages.append(_question(draw, thinking))
    shown = [system | _offer(tools)] if system else []
    mode = "thinking" if thinking else "chat"
    prompt = encoder.encode_messages([*shown, *messages], thinking_mode=mode)
    told = [*([system] if system else []), *messages]
    return {"messages": told, "tools": tools, "thinking": thinking, "prompt": prompt}


def _offer(tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": tool} for tool in tools]} if tools else {}


def _question(draw: random.Random, thinking: bool) -> dict[str, Any]:
    # Before the last question, the encoder cannot say what a developer said while the model thinks.
    role = "user" if thinking or draw.random() < 0.7 else "developer"
    return {"role": role, "content": draw.choice(TEXTS)}


def _said(draw: random.Random, more: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": draw.choice((*TEXTS, "")), "reasoning_content": draw.choice(TEXTS)} | more


def _calls(draw: random.Random) -> list[dict[str, Any]]:
    calls = []
    for index in range(draw.randint(1, 3)):
        arguments = {key: draw.choice(VALUES) for key in draw.sample(KEYS, draw.randint(0, 3))}
        function = {"name": draw.choice(TOOLS)["name"], "arguments": json.dumps(arguments)}
        calls.append({"id": f"call_{index}", "type": "function", "function": function})
    results = [{"role": "tool", "tool_call_id": call["id"], "content": draw.choice(TEXTS)} for call in calls]
    return [_said(draw, {"tool_calls": calls}), *results]


def _answer(draw: random.Random, encoder: Any) -> dict[str, Any]:
    """A complete answer, and what the encoder's own parser reads in it."""
    plain = [text for text in TEXTS if "｜" not in text and "think" not in text and text.strip("\n") == text]
    thinking = draw.random() < 0.5
    said = {"role": "assistant", "content": draw.choice((*plain, "")), "reasoning_content": draw.choice(plain)}
    if draw.random() < 0.7:
        said["tool_calls"] = _calls(draw)[0]["tool_calls"]
    mode = "thinking" if thinking else "chat"
    asked = [{"role": "user", "content": "x"}]
    prompt = encoder.encode_messages(asked, thinking_mode=mode)
    text = encoder.encode_messages([*asked, said], thinking_mode=mode).removeprefix(prompt)
    read = encoder.parse_message_from_completion_text(text, thinking_mode=mode)
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in read["tool_calls"]]
    expected = {"reasoning": read["reasoning_content"], "content": read["content"], "calls": calls}
    return {"thinking": thinking, "text": text.removesuffix(encoder.eos_token), **expected}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
