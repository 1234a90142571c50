"""Requests as editors send them to fill a gap, and curl."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from typing import Any

PREFIX, SUFFIX = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"


def post(url: str, body: dict[str, Any]) -> str:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_zed_asks_with_the_marks_of_the_model(embedded: str) -> None:
    laid_out = f"<｜fim▁begin｜>{PREFIX}<｜fim▁hole｜>{SUFFIX}<｜fim▁end｜>"
    body = {"model": "deepwell", "prompt": laid_out, "max_tokens": 16, "temperature": 0.2, "stop": ["<｜fim▁begin｜>"]}
    by_marks = json.loads(post(f"{embedded}/v1/completions", body | {"seed": 1}))
    by_suffix = json.loads(
        post(
            f"{embedded}/beta/completions",
            {"model": "deepwell", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 16, "temperature": 0.2, "seed": 1},
        )
    )
    assert by_marks["choices"][0]["text"] == by_suffix["choices"][0]["text"]


def test_minuet_streams_a_gap(embedded: str) -> None:
    body = {
        "model": "deepwell",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "stream": True,
        "max_tokens": 16,
        "top_p": 0.9,
        "stop": ["\n\n"],
        "n": 1,
    }
    text = post(f"{embedded}/v1/completions", body)
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"' in text


def test_llama_vim_fills_and_warms_up(embedded: str) -> None:
    body = {
        "id_slot": 0,
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": [{"text": "x = 1\n", "filename": "x.py", "time": [1, 2]}],
        "prompt": "    ret",
        "n_predict": 16,
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        "response_fields": ["content", "timings/prompt_n", "truncated"],
    }
    assert isinstance(json.loads(post(f"{embedded}/infill", body))["content"], str)
    assert json.loads(post(f"{embedded}/infill", body | {"n_predict": 0}))["content"] == ""


def test_curl(embedded: str) -> None:
    body = json.dumps({"prompt": "import os", "max_tokens": 4, "stream": True})
    done = subprocess.run(
        ["curl", "-sS", "--fail", f"{embedded}/v1/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.endswith("data: [DONE]\n\n")
