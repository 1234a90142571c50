"""Short names of models: what each means, and what is said about names that nothing has."""

from __future__ import annotations

import pytest

from deepwell.model.accounting import file_bytes
from deepwell.model.published import published
from deepwell.weights.hub.files import parse
from deepwell.weights.hub.names import find, known, licence_of, nearest, unknown_name


def test_every_released_model_has_a_place_its_size_and_a_licence() -> None:
    for model in published().values():
        row = find(model.name)
        assert row is not None
        assert row.name == model.name, "the listed name is the model itself, not a quantised file of it"
        assert row.size == pytest.approx(file_bytes(model.config, model.stored), rel=0.02)
        assert row.licence


def test_every_row_is_a_name_on_a_hub_and_finds_itself() -> None:
    for row in known():
        assert parse(row.place) is not None
        assert find(row.name) == row
        assert find(row.name.lower()) == row
        assert licence_of(row.repo) == row.licence
    assert len({row.name.lower() for row in known()}) == len(known())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("SmolLM2-135M-Instruct", "bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M"),
        ("smollm2-135m-instruct:Q8_0", "bartowski/SmolLM2-135M-Instruct-GGUF:Q8_0"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("DeepSeek-R1-Distill-Qwen-1.5B:q4_k_m", "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF:Q4_K_M"),
        ("deepseek-coder-6.7b-instruct", "deepseek-ai/deepseek-coder-6.7b-instruct"),
    ],
)
def test_names(text: str, place: str) -> None:
    found = find(text)
    assert found is not None
    assert found.place == place


@pytest.mark.parametrize("text", ["", ":", "/", "DeepSeek-R1:Q4_K_M", "zzz", "org/name", "DeepSeek-R1 ", "\x00"])
def test_what_is_no_name(text: str) -> None:
    assert find(text) is None


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("deepseek-v2-light", "DeepSeek-V2-Lite"),
        ("smollm", "SmolLM2-135M-Instruct:Q4_K_M"),
        ("qwen-coder", "Qwen2.5-Coder-0.5B-Instruct:Q4_K_M"),
        ("R1-Distill-Qwen-1.5", "DeepSeek-R1-Distill-Qwen-1.5B"),
        ("deepseek-ai/DeepSeek-R1-Distil-Qwen-7B", "DeepSeek-R1-Distill-Qwen-7B"),
        ("org/my-modle", "org/my-model"),
    ],
)
def test_the_nearest_name(text: str, first: str) -> None:
    assert nearest(text, "org/my-model")[0] == first


def test_what_is_said_of_an_unknown_name() -> None:
    assert "did you mean DeepSeek-V" in str(unknown_name("deepseek-v9"))
    assert "'zzz' is no file or folder here and no name of a model; `deepwell models` lists" in str(unknown_name("zzz"))
    assert "cannot run yet" in str(unknown_name("DeepSeek-V4-Flash"))
