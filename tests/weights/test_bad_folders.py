"""Model folders that are damaged, mixed up or not finished: each error names what is wrong and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from safetensors.torch import load_file, save_file

from deepwell.errors import CheckpointError, ConfigError, DeepwellError
from deepwell.loading.load import load_model
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.explain import decided_by
from deepwell.weights.source import open_source
from deepwell.weights.values import all_finite
from fakes import write_tiny_tokenizer

Tensors = dict[str, torch.Tensor]
SHAPES = ("v3", "v2-lite", "qwen3", "llama-tied-bias")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in SHAPES}
    for name, folder in made.items():
        seeded.save(name, folder)
        write_tiny_tokenizer(folder)
    made["sharded"] = tmp_path_factory.mktemp("sharded")
    seeded.save("v3", made["sharded"], max_shard_size="100KB")
    return made


@pytest.fixture
def copied(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(originals[name], tmp_path / "model"))


def configure(folder: Path, **change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def resave(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "v3",
            {"hidden_size": 128},
            r"embed_tokens.weight has shape \(320, 64\).*\(320, 128\): compare hidden_size in",
        ),
        ("v3", {"vocab_size": 512}, r"embed_tokens.weight has shape .*: compare vocab_size in config\.json"),
        (
            "v3",
            {"num_attention_heads": 8},
            r"q_b_proj.* compare num_attention_heads, qk_nope_head_dim and qk_rope_head_",
        ),
        ("v3", {"q_lora_rank": 32}, r"q_a_proj\.weight has shape .*: compare q_lora_rank in"),
        (
            "v3",
            {"kv_lora_rank": 48},
            r"kv_a_proj_with_mqa\.weight has shape .* compare kv_lora_rank and qk_rope_head_dim",
        ),
        ("v3", {"v_head_dim": 16}, r"kv_b_proj\.weight has shape .* qk_nope_head_dim and v_head_dim in"),
        ("v3", {"intermediate_size": 64}, r"mlp\.gate_proj\.weight has shape .*: compare intermediate_size in"),
        ("v3", {"moe_intermediate_size": 48}, r"experts\.0\.gate_proj\.weight has .* compare moe_intermediate_size in"),
        (
            "v3",
            {"n_shared_experts": 2},
            r"shared_experts.gate_proj\.weight has .* n_shared_experts and moe_intermediate_",
        ),
        ("v3", {"n_routed_experts": 32}, r"mlp\.gate\.weight has shape \(16, 64\).*compare n_routed_experts in"),
        (
            "v3",
            {"num_hidden_layers": 4},
            r"tensor model\.layers\.3\.\S+ is missing; .* or config\.json is of another one",
        ),
        (
            "v3",
            {"num_hidden_layers": 2, "num_nextn_predict_layers": 0},
            r"none of .*: config\.json says num_hidden_layers 2",
        ),
        ("v3", {"first_k_dense_replace": 2}, r"layers\.1\.mlp\.gate_proj\.weight is missing"),
        ("v3", {"q_lora_rank": None}, r"self_attn\.q_proj\.weight is missing"),
        ("v3", {"topk_method": "greedy"}, r"none of .*: config\.json says another topk_method than noaux_tc"),
        ("v2-lite", {"n_shared_experts": None}, r"shared_experts\.\S+ is none of .*: config\.json is of another model"),
        ("v2-lite", {"model_type": "deepseek_v3", "topk_method": None}, r"e_score_correction_bias is missing"),
        (
            "qwen3",
            {"head_dim": 32},
            r"q_proj\.weight has shape .* compare num_attention_heads and the width of a head in",
        ),
        ("qwen3", {"num_key_value_heads": 4}, r"k_proj\.weight has shape .* compare num_key_value_heads and the width"),
        ("qwen3", {"tie_word_embeddings": False}, r"tensor lm_head\.weight is missing"),
        ("qwen3", {"model_type": "llama"}, r"[qk]_norm\.weight is none of a llama model's"),
        (
            "llama-tied-bias",
            {"attention_bias": False, "mlp_bias": False},
            r"bias is none of .* attention_bias or mlp_bias",
        ),
        (
            "llama-tied-bias",
            {"model_type": "qwen2", "attention_bias": False},
            r"o_proj\.bias is none of a qwen2 model's",
        ),
    ],
)
def test_a_config_that_contradicts_its_weights(
    name: str, change: dict[str, Any], reason: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    configure(folder, **change)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(folder)


def test_experts_that_the_config_does_not_count(copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    name = "model.layers.1.mlp.experts.16.up_proj.weight"
    resave(folder, lambda t: t.update({name: torch.zeros(32, 64)}))
    with pytest.raises(CheckpointError, match=rf"tensor {name} is none .*: config\.json says n_routed_experts 16"):
        Checkpoint(folder)
    resave(folder, lambda t: t.pop(name))
    dense = "model.layers.0.mlp.experts.0.up_proj.weight"
    resave(folder, lambda t: t.update({dense: torch.zeros(32, 64)}))
    with pytest.raises(CheckpointError, match=r"is none .*: config\.json says first_k_dense_replace 1"):
        Checkpoint(folder)


def test_an_indexer_that_the_config_does_not_mention(copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    resave(folder, lambda t: t.update({"model.layers.0.self_attn.indexer.wk.weight": torch.zeros(32, 64)}))
    with pytest.raises(
        CheckpointError, match=r"indexer\.wk\.weight is none .*: config\.json says nothing of an indexer"
    ):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("tensor", "shape", "wanted", "keys"),
    [
        ("model.layers.0.self_attn.indexer.wq_b.weight", (64, 32), (32, 32), "index_n_heads and index_head_dim"),
        ("model.layers.0.self_attn.indexer.k_norm.bias", (64,), (32,), "index_head_dim"),
        ("model.layers.0.self_attn.k_norm.weight", (64,), (32,), "head_dim"),
        ("model.layers.0.mlp.down_proj.weight", (64, 32), (32, 64), "hidden_size and intermediate_size"),
        ("model.layers.9.eh_proj.weight", (64, 128), (64, 96), "hidden_size"),
        ("model.norm.weight", (64,), (32,), "hidden_size"),
        ("model.layers.0.self_attn.q_proj.bias", (64,), (32,), "num_attention_heads and the width of a head"),
    ],
)
def test_keys_that_decide_a_shape(tensor: str, shape: tuple[int, ...], wanted: tuple[int, ...], keys: str) -> None:
    assert decided_by(tensor, shape, wanted) == keys


NAMED = {
    "v3": [
        "model.embed_tokens.weight", "model.layers.1.mlp.experts.7.down_proj.weight", "model.layers.2.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.0.self_attn.kv_b_proj.weight",
        "lm_head.weight",
    ],
    "llama-tied-bias": ["model.layers.1.self_attn.k_proj.bias", "model.norm.weight"],
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "tensor"), [(name, tensor) for name, tensors in NAMED.items() for tensor in tensors])
def test_values_that_are_no_numbers_are_named_while_loading(
    name: str, tensor: str, value: float, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    resave(folder, lambda t: t[tensor].view(-1).__setitem__(-1, value))
    with pytest.raises(
        CheckpointError, match=rf"tensor {tensor} holds values that are not finite numbers; .* get it anew"
    ):
        load_model(folder, dtype="int8", blocks=1)


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 100_001])
def test_all_finite(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    assert all_finite(values)
    assert all_finite(np.full(size, 3e38, np.float32)), "squares that overflow are no sign of damage"
    assert all_finite(np.full((size, 2), -1e-40, np.float32))
    for place in {0, size // 2, size - 1} if size else set():
        for bad in (np.nan, np.inf, -np.inf):
            changed = values.copy()
            changed[place] = bad
            assert not all_finite(changed)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "eos_token_id", 320),
        ("config.json", "bos_token_id", 9_000),
        ("generation_config.json", "eos_token_id", [1, 151645]),
        ("generation_config.json", "bos_token_id", 151643),
    ],
)
def test_special_tokens_of_another_model(file: str, key: str, value: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    raw = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(raw | {key: value}))
    reason = rf"names (320|9000|151645|151643) as {key}, the model has only 320 tokens; allowed are 0 to 319"
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder, blocks=1)


def test_an_index_that_names_absent_shards(copied: Callable[[str], Path]) -> None:
    folder = copied("sharded")
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name}: is missing, though .* finish the download"):
        Checkpoint(folder)
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name}: is missing \(as are 1 more of {len(shards)}\)"):
        Checkpoint(folder)


def test_shards_of_two_downloads(copied: Callable[[str], Path]) -> None:
    folder = copied("sharded")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match=rf"{second.name}: has no tensor .*: index and shards are of different"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": null}']
)
def test_an_index_without_a_map(index: str, copied: Callable[[str], Path]) -> None:
    folder = copied("sharded")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json: has no weight_map from tensor names to files"):
        Checkpoint(folder)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_is_cut_off(kept: float, copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*download it again, or finish the download"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ((), "has no weights: neither model.safetensors nor"),
        (("model.safetensors.incomplete",), "the download of its weights is not finished"),
        ((".cache/huggingface/download/abc.incomplete",), "the download of its weights is not finished"),
        (("model-00001-of-00002.safetensors",), "has \\*.safetensors, but neither .* get the index"),
        (("pytorch_model.bin",), "as pickles, which can run code and are not read"),
        (("consolidated.00.pth",), "as pickles, which can run code"),
        (("model-Q4_K_M.gguf",), r"give the GGUF file itself: .*model-Q4_K_M\.gguf"),
    ],
)
def test_folders_without_weights(others: tuple[str, ...], reason: str, copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    (folder / "model.safetensors").unlink()
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(folder)


def test_a_snapshot_of_an_unfinished_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    shutil.copy(embedded_path() / "config.json", snapshot)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    with pytest.raises(CheckpointError, match="has no weights"):
        Checkpoint(snapshot)
    (tmp_path / "models--a--b" / "blobs" / "abcdef.incomplete").touch()
    with pytest.raises(CheckpointError, match="the download of its weights is not finished"):
        Checkpoint(snapshot)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(POINTER, "a Git LFS pointer"), (b"<!DOCTYPE html><html>", "a web page"), (b"\n<html lang=en>404", "a web page")],
)
def test_files_that_stand_for_others(name: str, content: bytes, reason: str, copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: is {reason}"):
        open_source(folder / name if name.endswith(".gguf") else folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, r"model_type \"\['llama'\]\" is not supported; supported are llama"),
        ({"model_type": "deepseek_v41"}, "model_type 'deepseek_v41' is .*; supported are llama, "),
        ({"qk_rope_head_dim": 7}, r"heads rotate 7 columns; allowed are even numbers \(qk_rope_head_dim"),
        ({"rope_parameters": "yarn"}, "rope_scaling is 'yarn'; allowed is an object"),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope scaling 'longrope' is not supported; supported are default",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling 'yarn' needs a factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0}}, "rope factor is 0; allowed are numbers above 0"),
        ({"rope_parameters": {"rope_theta": 1}}, "rope theta is 1; allowed are numbers above 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; supported is 1.0"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4, "truncate": False}},
            "truncate is False; supported is True",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 1e-200}},
            "frequencies are not finite|cannot be computed",
        ),
        ({"n_routed_experts": 1 << 20, "n_group": 1, "topk_group": 1}, r"allowed are \d+ layers and experts in all"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; allowed are numbers above 0"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ],
)
def test_configs_that_cannot_be_computed(change: dict[str, Any], reason: str, copied: Callable[[str], Path]) -> None:
    folder = copied("v3")
    configure(folder, **change)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{reason}"):
        Checkpoint(folder)


def test_a_folder_of_nothing_but_a_config(tmp_path: Path) -> None:
    shutil.copy(embedded_path() / "config.json", tmp_path)
    with pytest.raises(DeepwellError, match="has no weights"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"type": "yarn", "factor": 4.0}, 2048),
        ({"type": "yarn", "factor": 1.5, "original_max_position_embeddings": 400}, 600),
        ({"type": "linear", "factor": 4.0}, 512),
        ({"type": "yarn", "factor": 1e11}, 1 << 24),
    ],
)
def test_yarn_stretches_the_context(scaling: dict[str, Any], context: int, copied: Callable[[str], Path]) -> None:
    """As Qwen's cards turn it on: `max_position_embeddings` stays what it was, 512 here."""
    folder = copied("qwen3")
    configure(folder, rope_scaling=scaling, rope_parameters=None)
    assert Checkpoint(folder).config.context == context
    if context < 4096:
        assert load_model(folder, context=context, blocks=64).runner.context == context
        with pytest.raises(ConfigError, match=rf"context is \d+; this model allows 1 to {context},"):
            load_model(folder, context=context + 1)
