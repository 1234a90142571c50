"""Perplexity and KL beside a formula over transformers' logits, llama.cpp's windows, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deepwell.bench.perplexity import Scores, perplexity, windows_of
from deepwell.cli.main import main
from deepwell.errors import ConfigError
from deepwell.loading.load import load_model

TEXT = "The quick brown fox jumps over the lazy dog; 12 bottles of beer. " * 20


def test_perplexity_is_that_of_transformers_logits_over_second_halves(model_folder: Path) -> None:
    loaded = load_model(model_folder)
    windows = windows_of(loaded.tokenizer, TEXT, 64, 3)
    found = perplexity(loaded.runner, windows)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    nats: list[float] = []
    for tokens in windows:
        with torch.no_grad():
            log = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        nats += [-float(log[at, tokens[at + 1]]) for at in range(32, 63)]
    assert found.tokens == len(nats) == 3 * 31
    assert found.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert found.error == pytest.approx(math.exp(np.mean(nats)) * np.std(nats) / math.sqrt(len(nats) - 1), rel=1e-3)


def test_windows_share_nothing_and_open_with_the_begin_token(model_folder: Path) -> None:
    tokenizer = load_model(model_folder).tokenizer
    ids = [tokenizer.bos, *tokenizer.encode(TEXT)]
    windows = windows_of(tokenizer, TEXT, 16)
    assert len(windows) == len(ids) // 16
    assert windows[1] == [tokenizer.bos, *ids[17:32]]
    with pytest.raises(ConfigError, match=r"the text has \d+ tokens, and a window is 4096"):
        windows_of(tokenizer, TEXT, 4096)


def test_likeness_is_the_formula_of_kl() -> None:
    random = np.random.default_rng(7)
    ours, theirs = random.normal(size=(2, 9, 21)).astype(np.float32) * 3
    targets = random.integers(0, 21, 9)
    scores = Scores("other")
    scores.add(targets, ours, theirs)
    like = scores.measured(18).likeness
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(-1, keepdims=True) for x in (theirs, ours))
    assert like is not None
    assert like.kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-9)
    assert like.same_first == (p.argmax(-1) == q.argmax(-1)).mean()
    assert like.perplexity == pytest.approx(math.exp(-np.log(p[np.arange(9), targets]).mean()))


def test_command_compares_a_quantised_model_with_its_reference(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "prose.txt"
    text.write_text(TEXT)
    args = [str(model_folder), str(text), "--window", "32", "--windows", "2", "--reference", str(model_folder)]
    assert main(["perplexity", *args, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)["result"]
    assert same["perplexity"] == same["likeness"]["perplexity"]
    assert (same["likeness"]["kl"], same["likeness"]["same_first"]) == (pytest.approx(0, abs=1e-12), 1.0)
    assert main(["perplexity", *args, "--dtype", "int4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dtype"], report["result"]["windows"], report["result"]["tokens"]) == ("int4", 2, 30)
    assert 0 < report["result"]["likeness"]["kl"] < report["result"]["likeness"]["kl_99"]
    assert report["result"]["likeness"]["reference"].endswith("in float32")
    assert main(["perplexity", *args]) == 0
    assert "same first    100.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["missing.txt"], "missing.txt: No such file or directory"),
        (["."], "Is a directory"),
        (["text", "--window", "4"], "at least 8"),
        (["latin"], "not UTF-8 at byte 0"),
        (["text", "--window", "100000"], "a window is 100000"),
    ],
)
def test_refusals_name_what_is_wrong(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    Path("latin").write_bytes(b"\xe9t\xe9")
    assert main(["perplexity", *args]) == 2
    assert said in capsys.readouterr().err
