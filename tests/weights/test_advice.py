"""What a checkpoint's makers advise for sampling is read from every kind of file, and goes with it into others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import seeded

from deepwell.loading.convert import Target, prepare
from deepwell.weights.advice import Advice, of_generation, of_gguf
from deepwell.weights.source import open_source
from fakes import write_tiny_tokenizer

R1 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("advice")
    seeded.save("llama", made)
    write_tiny_tokenizer(made)
    (made / "generation_config.json").write_text(json.dumps(R1))
    return made


@pytest.mark.parametrize("target", ["packed", "gguf", "safetensors"])
def test_it_goes_with_the_model(target: Target, folder: Path, tmp_path: Path) -> None:
    wanted = Advice(temperature=0.6, top_p=0.95)
    assert open_source(folder).advice == wanted
    out = tmp_path / {"packed": "m.deepwell", "gguf": "m.gguf", "safetensors": "m"}[target]
    prepare(folder, target).write(out, lambda done, total: None)
    assert open_source(out).advice == wanted
    if target == "gguf":
        back = tmp_path / "back"
        prepare(out, "safetensors").write(back, lambda done, total: None)
        assert open_source(back).advice == wanted


def test_a_model_without_any_has_none(tmp_path: Path) -> None:
    seeded.save("llama", tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert open_source(tmp_path).advice == Advice()
    assert str(Advice()) == ""
    assert str(Advice(temperature=0.6, top_k=20)) == "temperature 0.6, top_k 20"


@pytest.mark.parametrize(
    "value", [None, "0.6", True, -1, 2.5, float("nan"), float("inf"), 10**400, [0.6], {}], ids=repr
)
def test_what_cannot_be_followed_advises_nothing(value: Any) -> None:
    assert of_generation({"temperature": value, "top_k": value if value != 2.5 else 1.5}) == Advice()


def test_a_model_that_is_not_to_be_sampled_advises_nothing() -> None:
    assert of_generation({"do_sample": False, "temperature": 0.6}) == Advice()


def test_the_keys_of_gguf() -> None:
    keys = {"temp": 0.6000000238418579, "top_p": 0.949999988079071, "top_k": 40, "min_p": 0.0, "penalty_repeat": 1.0}
    advice = of_gguf({f"general.sampling.{key}": value for key, value in keys.items()})
    assert advice == Advice(temperature=0.6, top_p=0.95, top_k=40, min_p=0.0, repetition_penalty=1.0)
