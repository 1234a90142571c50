"""/tokenize and /detokenize in vLLM's and llama.cpp's words, /infill in llama.cpp's, and one model of the list."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import CONTEXT, MODEL, T, chat, client_of, make_service, noted
from starlette.testclient import TestClient
from test_bad_input import CHAT, error_of

from deepwell.engine.types import Request
from fakes import FakeRunner, reply

TEXT = "<｜User｜>Größe 🐳"
IDS = T.encode(TEXT, controls=True)
FIM = [T.special(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end")]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"prompt": TEXT}, [T.bos, *IDS]),
        ({"prompt": TEXT, "add_special_tokens": False}, IDS),
        ({"content": TEXT}, IDS),
        ({"content": TEXT, "add_special": True}, [T.bos, *IDS]),
        ({"content": TEXT, "parse_special": False}, T.encode(TEXT)),
        ({"prompt": T.decode([T.bos or 0]) + TEXT}, [T.bos, *IDS]),
        ({"content": "", "model": MODEL}, []),
    ],
)
def test_a_text_is_tokenized_and_comes_back(
    client: TestClient, path: str, body: dict[str, Any], wanted: list[int]
) -> None:
    answer = client.post(path, json=body).json()
    assert answer == {"count": len(wanted), "max_model_len": CONTEXT, "tokens": wanted}
    back = client.post(path.replace("tokenize", "detokenize"), json={"tokens": wanted}).json()
    assert back["prompt"] == back["content"] == T.decode(wanted)


def test_a_conversation_is_tokenized_as_a_chat_would_be() -> None:
    service = make_service()
    seen: list[Request] = []
    noted(service.engine, seen.append)
    with client_of(service) as client:
        client.post(CHAT, json=chat(TEXT, max_tokens=1))
        answer = client.post("/tokenize", json={"messages": chat(TEXT)["messages"]}).json()
        assert tuple(answer["tokens"]) == seen[0].prompt


def test_tokens_can_be_seen(client: TestClient) -> None:
    asked = {"content": "é🐳", "with_pieces": True, "return_token_strs": True}
    answer = client.post("/tokenize", json=asked).json()
    whole = b"".join(
        bytes(t["piece"]) if isinstance(t["piece"], list) else t["piece"].encode() for t in answer["tokens"]
    )
    assert whole.decode() == "é🐳"
    assert len(answer["token_strs"]) == answer["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a" * 2_000_000}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * (CONTEXT + 1)}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/infill", {"input_prefix": 3}, "input_prefix"),
        ("/infill", {"input_prefix": "a" * 2_000_000}, "input_prefix"),
        ("/infill", {"grammar": "x"}, "grammar"),
        ("/infill", {"n_predict": 1, "max_tokens": 2}, "n_predict"),
        ("/infill", {"n_predict": 0, "max_completion_tokens": 2}, "n_predict"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, path: str, body: dict[str, Any], param: str) -> None:
    assert error_of(client.post(path, json=body))["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_gap_is_filled_in_llama_cpps_words(stream: bool) -> None:
    """The body is that of its plugins for editors."""
    body = {
        "input_prefix": "def f():\n",
        "input_suffix": "\n    return x",
        "input_extra": [{"filename": "a.py", "text": "x = 1"}],
        "prompt": "    x",
        "n_predict": 3,
        "top_k": 40,
        "top_p": 0.99,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_predict_ms": 500,
        "stream": stream,
    }
    service = make_service(FakeRunner(context=CONTEXT, next_token=reply([*T.encode(" = 1")], after=T.encode("x")[0])))
    seen: list[Request] = []
    noted(service.engine, seen.append)
    with client_of(service) as client:
        text = client.post("/infill", json=body).text
    begin, hole, end = FIM
    prefix, suffix = T.encode("# a.py\nx = 1\ndef f():\n"), T.encode("\n    return x")
    assert seen[0].prompt == (T.bos, begin, *prefix, hole, *suffix, end, *T.encode("    x"))
    parts = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
    assert "".join(part["content"] for part in parts) == " = "
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1]["tokens_predicted"], parts[-1]["stop_type"]) == (3, "limit")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "how"), [({}, ("eos", "")), ({"stop": ["y", "="]}, ("word", "=")), ({"n_predict": 1}, ("limit", ""))]
)
def test_a_filled_gap_says_how_it_ended(fields: dict[str, Any], how: tuple[str, str], stream: bool) -> None:
    runner = FakeRunner(context=CONTEXT, next_token=reply([*T.encode(" = 1"), *T.eos], after=T.encode("x")[0]))
    body = {"input_prefix": "", "input_suffix": "", "prompt": "x", "stream": stream, **fields}
    with client_of(make_service(runner)) as client:
        *_, last = filter(None, client.post("/infill", json=body).text.splitlines())
    part = json.loads(last.removeprefix("data: "))
    assert (part["stop_type"], part["stopping_word"]) == how


@pytest.mark.parametrize("stream", [False, True])
def test_a_gap_may_be_read_into_the_cache_without_an_answer(stream: bool) -> None:
    """As editors warm it."""
    body = {"input_prefix": "a " * 200, "input_suffix": "b", "n_predict": 0, "stream": stream}
    with client_of(make_service()) as client:
        for warm in (False, True):
            response = client.post("/infill", json=body)
            assert response.status_code == 200
            (part,) = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
            assert (part["content"], part["stop"], part["tokens_predicted"]) == ("", True, 0)
            assert (part["tokens_cached"] > 0) == warm


def test_what_a_program_needs_that_lays_out_prompts_itself(client: TestClient) -> None:
    """As lm-eval's remote tokenizer asks for it."""
    info = client.get("/tokenizer_info").json()
    for token, id in (("bos_token", T.bos), ("eos_token", T.eos[0])):
        asked = {"prompt": info[token], "add_special_tokens": False}
        assert client.post("/tokenize", json=asked).json()["tokens"] == [id]
    assert info["model_max_length"] == CONTEXT


@pytest.mark.parametrize("id", ["deepseek-chat", "org/model name:q4", MODEL])
def test_one_model_can_be_asked_for(id: str) -> None:
    with client_of(make_service(aliases=("deepseek-chat", "org/model name:q4"))) as client:
        listed = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert client.get(f"/v1/models/{id}").json() == listed[id]
        assert client.get(f"/v1/models/{id.replace('/', '%2F')}").json() == listed[id]
        assert error_of(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
