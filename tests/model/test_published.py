"""The released models' shapes: parameters computed from them are those published, to the digit where that is known."""

from typing import Any

import pytest

from deepwell.model import account
from deepwell.model.accounting import file_bytes
from deepwell.model.published import find_published, published

# Model cards and hub pages; the exact ones are counted by their authors' own code.
EXACT = {
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_543_714_304 + 151_936 * 1536,  # Qwen2.5-1.5B and a head of its own
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "DeepSeek-R1-0528-Qwen3-8B": 8_190_735_360,
}
BILLIONS = {
    "DeepSeek-LLM-7B": 6.91,
    "DeepSeek-LLM-67B": 67.4,
    "DeepSeek-Coder-1.3B": 1.35,
    "DeepSeek-Coder-5.7BMQA": 5.7,
    "DeepSeek-Coder-6.7B": 6.74,
    "DeepSeek-Coder-33B": 33.3,
    "DeepSeek-Coder-7B-v1.5": 6.91,
    "DeepSeek-Math-7B": 6.91,
    "DeepSeek-Prover-V1": 6.91,
    "DeepSeek-Prover-V1.5": 6.91,
    "DeepSeek-Prover-V2-7B": 6.91,
    "DeepSeek-MoE-16B": 16.4,
    "DeepSeek-V2-Lite": 15.7,
    "DeepSeek-Coder-V2-Lite": 15.7,
    "DeepSeek-V2": 236,
    "DeepSeek-Coder-V2": 236,
    "DeepSeek-V2.5": 236,
}
V3 = ("V3", "V3-0324", "R1", "R1-Zero", "R1-0528", "V3.1", "V3.1-Terminus", "Prover-V2-671B")
BILLIONS |= {f"DeepSeek-{name}": 671 for name in V3}
# V3 and 61 indexers of 14 million.
BILLIONS |= {f"DeepSeek-{name}": 671.9 for name in ("V3.2-Exp", "V3.2", "V3.2-Speciale", "Math-V2")}
# The papers count the embedding row by row or whole, hence the band.
ACTIVE = {"DeepSeek-MoE-16B": 2.8, "DeepSeek-V2-Lite": 2.4, "DeepSeek-V2": 21, "DeepSeek-V3": 37}


def test_every_released_model_has_a_published_count() -> None:
    assert {m.name for m in published().values()} == EXACT.keys() | BILLIONS.keys()


@pytest.mark.parametrize("name", EXACT)
def test_exact_counts(name: str) -> None:
    model = find_published(name)
    assert model is not None
    assert account(model.config).total_params == EXACT[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_counts_within_rounding(name: str) -> None:
    model = find_published(name)
    assert model is not None
    assert account(model.config).total_params / 1e9 == pytest.approx(BILLIONS[name], rel=0.003)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name: str) -> None:
    model = find_published(name)
    assert model is not None
    assert account(model.config).active_params / 1e9 == pytest.approx(ACTIVE[name], rel=0.07)


def test_latent_caches_keep_the_promise_of_v2() -> None:
    """V2's paper: 5 to 13 % of plain attention's cache. Lite's 16 heads are within; 128 heads are far below."""
    shares = {}
    for model in published().values():
        counts = account(model.config, kv_bytes=2)
        shares[model.name] = counts.kv_bytes_per_token / counts.mha_kv_bytes_per_token
        if model.config.mla:
            assert shares[model.name] < 0.13
    assert shares["DeepSeek-V2-Lite"] == 576 / (16 * (192 + 128)) == 0.1125
    assert shares["DeepSeek-V2"] == shares["DeepSeek-V3"] == pytest.approx(0.0141, abs=1e-4)
    assert shares["DeepSeek-LLM-7B"] == 1
    assert shares["DeepSeek-Coder-5.7BMQA"] == 1 / 32


def test_v3_on_disk() -> None:
    """Its hub page says 685 B parameters (the module's copies of embedding and head included) in 688.6 GB."""
    model = find_published("DeepSeek-V3")
    assert model is not None
    counts = account(model.config)
    copies = 2 * 129280 * 7168
    assert (counts.total_params + counts.mtp_params + copies) / 1e9 == pytest.approx(684.5, abs=0.1)
    assert file_bytes(model.config, "float8") / 1e9 == pytest.approx(688.6, rel=1e-3)
    assert file_bytes(model.config, "bfloat16") == 2 * (counts.total_params + counts.mtp_params + copies)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("deepseek-v3", "DeepSeek-V3"),
        ("deepseek-ai/DeepSeek-R1", "DeepSeek-R1"),
        ("deepseek-ai/deepseek-llm-67b-chat", "DeepSeek-LLM-67B"),
        ("deepseek-coder-7b-instruct-v1.5", "DeepSeek-Coder-7B-v1.5"),
        ("DeepSeek-Coder-V2-Instruct-0724", "DeepSeek-Coder-V2"),
        ("DeepSeek-V2.5-1210", "DeepSeek-V2.5"),
        ("deepseek-ai/DeepSeek-V3-Base", "DeepSeek-V3"),
        ("DeepSeek-Prover-V1.5-RL", "DeepSeek-Prover-V1.5"),
        ("R1-0528", "DeepSeek-R1-0528"),
        ("gpt-2", None),
        ("", None),
    ],
)
def test_names_as_hubs_have_them(asked: str, name: str | None) -> None:
    found = find_published(asked)
    assert (found and found.name) == name


def test_rope_of_the_qwen3_distillation() -> None:
    """`attn_factor` undoes YaRN's own 0.1 ln 4 + 1, as the servers that the model was made for compute it."""
    model: Any = find_published("DeepSeek-R1-0528-Qwen3-8B")
    assert model.config.rotation.magnitude == pytest.approx(1.0, abs=1e-12)
