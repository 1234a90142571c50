"""Models read from GGUF files give transformers' logits, through the native backend and the decoder's torch form."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import msgspec
import numpy as np
import pytest
import seeded
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file

from deepwell.errors import CheckpointError
from deepwell.loading.load import load_model
from deepwell.loading.pack import storages
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.ggml_types import BY_NAME
from fakes import tiny_tokenizer, write_tiny_tokenizer

BOUND = 1e-4


def logits_of(checkpoint: GgufCheckpoint | Checkpoint, tokens: np.ndarray) -> np.ndarray:
    rows = np.arange(len(tokens), dtype=np.int32)
    pages = np.arange(-(-len(tokens) // 64), dtype=np.int32)[None]
    batch = Batch(tokens.astype(np.int32), rows, np.zeros_like(rows), pages, rows)
    return NativeRunner(checkpoint, "float32", blocks=8).run(batch)


@pytest.mark.parametrize("split_kv_b", [True, False])
@pytest.mark.parametrize("name", seeded.CONFIGS)
def test_logits(name: str, split_kv_b: bool, tmp_path: Path) -> None:
    if not split_kv_b and not name.startswith("v"):
        pytest.skip("has no kv_b")
    reference, file = gguf_files.save(name, tmp_path, split_kv_b=split_kv_b)
    tokens = np.random.default_rng(1).integers(0, 320, 150)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert wanted.std() > 1
    assert np.abs(logits_of(GgufCheckpoint(file), tokens) - wanted).max() < BOUND


def test_deepseek_moe(tmp_path: Path) -> None:
    """MoE-16B's architecture, from a folder and from a GGUF file, where q and k have their rows reordered."""
    reference = seeded.make_deepseek_moe(tmp_path)
    tokens = np.random.default_rng(1).integers(0, 320, 150)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    folder = Checkpoint(tmp_path)
    assert folder.config.family == "deepseek"
    assert np.abs(logits_of(folder, tokens) - wanted).max() < BOUND

    def moe(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        w.add_leading_dense_block_count(1)
        w.add_expert_feed_forward_length(32)
        w.add_expert_count(8)
        w.add_expert_used_count(3)
        w.add_expert_shared_count(2)
        w.add_expert_weights_scale(1.0)

    saved = load_file(tmp_path / "model.safetensors")
    file = gguf_files.write(tmp_path / "moe.gguf", reference.config, saved, "deepseek", change=moe)
    checkpoint = GgufCheckpoint(file)
    assert checkpoint.config == msgspec.structs.replace(folder.config, interleaved=True)
    assert np.abs(logits_of(checkpoint, tokens) - wanted).max() < BOUND


@pytest.mark.parametrize("name", ["llama-gqa-linear", "qwen2", "v2", "v3"])
def test_config_is_that_of_the_folder(name: str, tmp_path: Path) -> None:
    """Metadata and config.json describe one shape; but for the rotation's layout, where rows are reordered."""
    _, file = gguf_files.save(name, tmp_path)
    got, wanted = GgufCheckpoint(file).config, Checkpoint(tmp_path).config
    assert got == msgspec.structs.replace(wanted, interleaved=name.startswith("llama"), mtp_layers=0)


QUANTISED = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0, "f16": GGMLQuantizationType.F16}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_logits_are_those_of_the_dequantised_weights(kind: str, tmp_path: Path) -> None:
    """A quantised file computes what a float32 file of the values it stands for computes: the same bits."""
    options: Any = {"quantise": lambda name: gguf_files.F32 if "ffn_gate_inp" in name else QUANTISED[kind]}
    _, file = gguf_files.save("v3", tmp_path / "a", **options)
    quantised = GgufCheckpoint(file)
    assert quantised.stored == {"f16": "float16"}.get(kind, kind)

    def settle(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        arrays.update({name: tensor.float32() for name, tensor in quantised.tensors.items()})

    _, plain = gguf_files.save("v3", tmp_path / "b", change=settle)
    tokens = np.random.default_rng(2).integers(0, 320, 70)
    np.testing.assert_array_equal(logits_of(quantised, tokens), logits_of(GgufCheckpoint(plain), tokens))


Q8_0, Q4_0, Q5_0 = (GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "Q5_0"))


@pytest.mark.parametrize(
    ("largest", "others", "stored", "cache"),
    [
        (Q8_0, lambda name: Q5_0, "q5_0", "bfloat16"),  # as Q4_K_M keeps the head in more bits
        (gguf_files.F32, lambda name: Q8_0, "q8_0", "bfloat16"),
        # the type that most weights have is a float, though most are quantised, in two types
        (gguf_files.BF16, lambda name: Q8_0 if "ffn" in name else Q4_0, "q8_0", "bfloat16"),
        (Q8_0, lambda name: gguf_files.BF16, "bfloat16", "float32"),
    ],
)
def test_a_mixed_file_is_named_after_most_of_its_weights(
    largest: GGMLQuantizationType,
    others: Callable[[str], GGMLQuantizationType],
    stored: str,
    cache: str,
    tmp_path: Path,
) -> None:
    """Embedding and head are its largest tensors, and a third of its weights; the cache's type follows most too."""
    tops = ("token_embd.weight", "output.weight")
    _, file = gguf_files.save("llama", tmp_path, quantise=lambda name: largest if name in tops else others(name))
    source = GgufCheckpoint(file)
    assert source.stored == stored
    assert NativeRunner(source, blocks=1).cache_dtype == cache


def test_a_parameter_of_several_floats_is_kept_exactly(tmp_path: Path) -> None:
    """Though most weights are bfloat16, a gate in float32 beside them loses nothing."""
    gates = lambda name: gguf_files.F32 if "ffn_gate" in name else gguf_files.BF16  # noqa: E731
    _, file = gguf_files.save("llama", tmp_path, quantise=gates)
    source = GgufCheckpoint(file)
    assert source.stored == "bfloat16"
    assert storages(source, "auto")["layers.0.ffn.gate_up"] == "float32"


def test_the_metadata_meet_the_checks_of_every_config(tmp_path: Path) -> None:
    """What no reader of GGUF keys looks at itself: a rotation whose frequencies are no numbers."""

    def change(writer: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        writer.add_key_value("llama.attention.layer_norm_rms_epsilon", 1e10, gguf.GGUFValueType.FLOAT32)

    _, file = gguf_files.save("llama", tmp_path, change=change)
    with pytest.raises(CheckpointError, match=r"llama\.gguf: its metadata describe no model that can run: .* eps"):
        GgufCheckpoint(file)


def test_raw_blocks(tmp_path: Path) -> None:
    """What packing blocks directly needs: one type per parameter, raw rows in the order of `pieces`, no copies."""
    kinds = lambda name: QUANTISED["q4_0" if "_exps" in name else "q8_0"]  # noqa: E731
    _, file = gguf_files.save("v3", tmp_path, quantise=kinds)
    checkpoint = GgufCheckpoint(file)
    params = {p.key: p for p in checkpoint.params}
    experts = params["layers.1.ffn.experts.gate_up"]
    assert checkpoint.source_dtype(experts) == "q4_0"
    assert checkpoint.source_dtype(params["layers.0.ffn.gate_up"]) == "q8_0"
    assert checkpoint.source_dtype(params["norm"]) == "f32"
    assert checkpoint.source_dtype(params["layers.0.attn.kv_b"]) is None
    rows = 0
    for (row, blocks), (at, values) in zip(checkpoint.block_pieces(experts), checkpoint.pieces(experts), strict=True):
        assert row == at == rows
        assert np.shares_memory(
            blocks, checkpoint.tensors[f"blk.1.ffn_{'up' if row % 64 else 'gate'}_exps.weight"].blocks()
        )
        np.testing.assert_array_equal(BY_NAME["q4_0"].float32(blocks), values)
        rows += len(blocks)
    assert rows == 16 * 64
    halves = checkpoint.kv_halves(params["layers.0.attn.kv_b"])
    assert halves is not None
    assert [half.shape for half in halves] == [(4, 32, 16), (4, 24, 32)]
    with pytest.raises(IndexError, match="has no entry 4"):
        halves[0][4]


def test_gate_and_up_of_two_types(tmp_path: Path) -> None:
    _, file = gguf_files.save("llama", tmp_path, quantise=lambda name: QUANTISED["q4_0" if "gate" in name else "q8_0"])
    checkpoint = GgufCheckpoint(file)
    assert {checkpoint.source_dtype(p) for p in checkpoint.params if p.key.endswith("gate_up")} == {None}


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    def nextn(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        w.kv_data[0]["deepseek2.block_count"].value = 4
        w.add_nextn_predict_layers(1)
        arrays["blk.3.nextn.eh_proj.weight"] = np.zeros((64, 128), np.float32)
        arrays["blk.3.attn_norm.weight"] = np.ones(64, np.float32)

    _, file = gguf_files.save("v3", tmp_path, change=nextn)
    assert GgufCheckpoint(file).config.layers == 3


def test_split_files_equal_one(tmp_path: Path) -> None:
    _, one = gguf_files.save("v2", tmp_path)
    gguf_files.save("v2", tmp_path / "many", split_max_size=150_000)
    shards = sorted((tmp_path / "many").glob("*.gguf"))
    assert len(shards) > 2
    single, many = GgufCheckpoint(one), GgufCheckpoint(shards[0])
    assert len({t.file for t in many.tensors.values()}) == len(shards)
    assert single.sample == many.sample
    with pytest.raises(CheckpointError, match="is shard 2 of a split model; give the first, v2-00001-of-"):
        GgufCheckpoint(shards[1])
    shards[1].rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"v2-00002-of-.*is missing"):
        GgufCheckpoint(shards[0])
    shards[2].rename(shards[1])
    with pytest.raises(CheckpointError, match=r"has split.no 2 and split.count 11; expected are 1 and"):
        GgufCheckpoint(shards[0])


def drop(name: str) -> gguf_files.Change:
    return lambda w, arrays: arrays.__delitem__(name)


def put(key: str, value: Any) -> gguf_files.Change:
    def change(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        w.kv_data[0].pop(key, None)
        if value is not None:
            {str: w.add_string, int: w.add_uint32, float: w.add_float32, list: w.add_array, bool: w.add_bool}[
                type(value)
            ](key, value)

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "llama",
            put("general.architecture", "mamba"),
            "general.architecture 'mamba' is not supported",
        ),
        ("llama", put("llama.block_count", None), r"llama\.block_count is missing"),
        ("llama", put("llama.block_count", 4), r"tensor blk\.3\.attn_norm\.weight is missing"),
        ("llama", put("llama.block_count", 1 << 23), r"block_count leaves 8388608 layers; allowed are 1 to 4096"),
        ("llama", put("llama.embedding_length", "wide"), r"embedding_length is 'wide'; allowed are whole numbers"),
        ("llama", put("llama.attention.head_count", [4, 4, 2]), "head_count differs between layers"),
        ("llama", put("llama.attention.value_length", 8), r"value_length is 8; supported is the width of a key, 16"),
        (
            "llama",
            put("llama.attention.layer_norm_rms_epsilon", -1.0),
            r"is -1\.0; allowed are numbers above 0",
        ),
        ("llama", put("llama.attention.layer_norm_rms_epsilon", float("nan")), "epsilon is nan"),
        ("llama", put("llama.rope.freq_base", 1.0), r"freq_base is 1\.0; allowed are numbers above 1"),
        ("llama", put("llama.rope.scaling.type", "longrope"), "'longrope'; supported are none, linear and yarn"),
        ("llama", put("llama.expert_count", 8), "supported are llama models without experts"),
        ("llama", drop("output_norm.weight"), r"tensor output_norm\.weight is missing; the metadata call for \(64,\)"),
        ("llama", put("llama.feed_forward_length", 96), r"ffn_gate\.weight has shape \(160, 64\); the metadata call"),
        (
            "llama",
            lambda w, arrays: arrays.update({"blk.0.mystery.weight": np.zeros(32, np.float32)}),
            r"tensor blk\.0\.mystery\.weight is none of a llama model's",
        ),
        ("v3", put("deepseek2.expert_gating_func", 4), r"is 4; supported are 1 \(softmax\) and 2 \(sigmoid\)"),
        ("v3", put("deepseek2.expert_used_count", 9), "asks for 9 of 16 experts from 2 of 4 groups"),
        ("v3", put("deepseek2.expert_weights_norm", 1), "expert_weights_norm is 1; allowed are true and false"),
        ("v3", put("deepseek2.expert_count", 1 << 20), "allowed are 131072 in all"),
        ("v3", drop("blk.2.attn_v_b.weight"), r"tensor blk\.2\.attn_kv_b\.weight is missing"),
        (
            "llama",
            put("general.architecture", "deepseek4"),
            "'deepseek4' is not supported; supported are .*; of DeepSeek-V4, Deepwell knows the prompt format alone",
        ),
        ("v32", put("deepseek32.attention.indexer.top_k", None), r"attention\.indexer\.top_k is missing"),
        ("v32", put("deepseek32.attention.indexer.top_k", 1 << 21), "top_k is 2097152; allowed are 1 to 1048576"),
        (
            "v32",
            put("deepseek32.attention.indexer.key_length", 6),
            r"key_length is 6; allowed are even numbers from rope\.dimension_count 8 to 1024",
        ),
        ("v32", drop("blk.1.indexer.k_norm.bias"), r"tensor blk\.1\.indexer\.k_norm\.bias is missing"),
        ("llama", put("tokenizer.ggml.model", "t5"), "is 't5'; supported are 'gpt2', byte-level BPE, and 'llama'"),
        ("llama", put("tokenizer.ggml.pre", "gemma4"), "is 'gemma4', whose tokens are not made of bytes"),
        ("llama", put("tokenizer.ggml.tokens", ["a", "b"]), "token_type must be a list of 2 whole numbers"),
        ("llama", put("tokenizer.ggml.merges", ["ab"]), "merges hold 'ab'; allowed are two tokens with a space"),
        ("llama", put("tokenizer.ggml.merges", [""]), "merges hold ''"),
        ("llama", put("tokenizer.ggml.eos_token_id", 320), "eos_token_id is 320; allowed are the tokens 0 to 319"),
    ],
)
def test_what_is_wrong_is_named(name: str, change: gguf_files.Change, reason: str, tmp_path: Path) -> None:
    _, file = gguf_files.save(name, tmp_path, change=change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        GgufCheckpoint(file).tokenizer()
    assert str(file) in str(caught.value)


def test_a_vocabulary_without_some_bytes(tmp_path: Path) -> None:
    def change(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        put("tokenizer.ggml.tokens", ["a", "b"])(w, arrays)
        put("tokenizer.ggml.token_type", None)(w, arrays)

    _, file = gguf_files.save("llama", tmp_path, change=change)
    with pytest.raises(CheckpointError, match="tokens have none for 241 of the 256 bytes, the first 0x21"):
        GgufCheckpoint(file).tokenizer()


def test_old_files_name_no_gating_and_one_head_count_per_layer(tmp_path: Path) -> None:
    def old(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        put("deepseek2.expert_gating_func", None)(w, arrays)
        put("deepseek2.attention.head_count", [4, 4, 4])(w, arrays)
        put("deepseek2.attention.q_lora_rank", 1536)(w, arrays)

    _, file = gguf_files.save("v2-lite", tmp_path, change=old, split_kv_b=False)
    config = GgufCheckpoint(file).config
    assert config.family == "deepseek_v2"
    assert config.moe is not None
    assert (config.moe.routing.scoring, config.moe.routing.method) == ("softmax", "greedy")
    assert config.mla is not None
    assert config.mla.q_lora is None
    assert (config.rope.mscale, config.rope.mscale_all_dim) == (0.707, 0.707)


def test_a_v3_file_that_names_no_gating_is_routed_as_v3(tmp_path: Path) -> None:
    """Its experts have a bias. What was assumed is said; the logits are those of the file that says it."""

    def forgetful(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        put("deepseek2.expert_gating_func", None)(w, arrays)
        put("deepseek2.expert_weights_norm", None)(w, arrays)

    reference, file = gguf_files.save("v3", tmp_path, change=forgetful)
    source = GgufCheckpoint(file)
    assert source.config.family == "deepseek_v3"
    assert [note.split(";")[0] for note in source.notes] == [
        "v3.gguf: deepseek2.expert_gating_func is missing",
        "v3.gguf: deepseek2.expert_weights_norm is missing",
    ]
    assert "sigmoid" in source.notes[0]
    tokens = np.random.default_rng(1).integers(0, 320, 150)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(logits_of(source, tokens) - wanted).max() < BOUND
    assert load_model(file, blocks=4).notes == tuple(source.notes)


def test_a_file_that_says_all_has_no_notes(tmp_path: Path) -> None:
    assert GgufCheckpoint(gguf_files.save("v3", tmp_path)[1]).notes == []


def test_modules_that_no_key_counts(tmp_path: Path) -> None:
    def uncounted(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        put("deepseek2.nextn_predict_layers", None)(w, arrays)
        put("deepseek2.block_count", 4)(w, arrays)
        arrays["blk.3.nextn.eh_proj.weight"] = np.zeros((64, 128), np.float32)
        arrays["blk.3.attn_norm.weight"] = np.ones(64, np.float32)

    source = GgufCheckpoint(gguf_files.save("v3", tmp_path, change=uncounted)[1])
    assert source.config.layers == 3
    assert source.notes == [
        "v3.gguf: deepseek2.nextn_predict_layers is missing; assumed is 1, by the tensors of the last blocks"
    ]


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    def stretched(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        put("qwen3.context_length", 128)(w, arrays)
        put("qwen3.rope.scaling.original_context_length", 128)(w, arrays)

    assert GgufCheckpoint(gguf_files.save("qwen3", tmp_path, change=stretched)[1]).config.context == 512


@pytest.mark.parametrize(
    ("keys", "magnitude"),
    [
        ({}, 1 + 0.1 * math.log(4)),
        ({"yarn_attn_factor": 0.8782488562869419}, 1.0),  # of R1-0528-Qwen3-8B, by its converter
        ({"yarn_attn_factor": 1.25}, 1.25),
        ({"attn_factor": 0.5}, 0.5 * (1 + 0.1 * math.log(4))),
        ({"attn_factor": 0.5, "yarn_attn_factor": 0.25}, 0.5 * (1 + 0.1 * math.log(4))),
    ],
)
def test_magnitude_of_yarn(keys: dict[str, float], magnitude: float, tmp_path: Path) -> None:
    def change(w: GGUFWriter, arrays: gguf_files.Arrays) -> None:
        for key, value in keys.items():
            put(f"qwen3.rope.scaling.{key}", value)(w, arrays)

    _, file = gguf_files.save("qwen3", tmp_path, change=change)
    assert GgufCheckpoint(file).config.rotation.magnitude == pytest.approx(magnitude, rel=1e-7)


def test_load_model(tmp_path: Path) -> None:
    _, file = gguf_files.save("qwen2", tmp_path)
    model = load_model(file, blocks=4)
    assert (model.name, model.dtype, model.config.family) == ("qwen2", "float32", "qwen2")
    assert model.tokenizer.encode("The quick") == tiny_tokenizer().encode("The quick")
    _, half = gguf_files.save("qwen2", tmp_path / "half", quantise=lambda name: gguf_files.BF16)
    assert load_model(half, blocks=4).dtype == "bfloat16"


def test_generate(tmp_path: Path) -> None:
    """The command line on a GGUF file says what it says on the folder that the file was made from."""
    _, file = gguf_files.save("v3", tmp_path)
    write_tiny_tokenizer(tmp_path)
    command = [sys.executable, "-m", "deepwell.cli.main", "generate"]
    rest = ["The quick", "--max-tokens", "12", "--temperature", "0", "--json"]
    answers = [
        json.loads(
            subprocess.run([*command, path, *rest], capture_output=True, text=True, check=True, timeout=120).stdout
        )
        for path in (str(file), str(tmp_path))
    ]
    assert answers[0].pop("model") == "v3"
    assert answers[0]["text"] == answers[1]["text"] != ""
    assert answers[0]["usage"] == answers[1]["usage"]
