"""Models converted between folders and GGUF files say what they said, bit for bit where the types allow it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import msgspec
import numpy as np
import pytest
import seeded
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from test_block_fp8 import publish
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.convert import Target, as_hugging_face, prepare, target_of
from deepwell.loading.runner import NativeRunner
from deepwell.model.config_json import config_json
from deepwell.ops.base import Batch
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.layout import as_gguf
from deepwell.weights.gguf.metadata import architecture
from deepwell.weights.gguf.splits import SPLITS, behaviour
from deepwell.weights.gguf.vocabulary import split_name, tokenizer_metadata
from deepwell.weights.source import Source, open_source
from deepwell.weights.tokenizer import Tokenizer
from fakes import BOS, SPECIALS, write_tiny_tokenizer

YARN = {"type": "yarn", "factor": 4.0}
TEXT = "The quick <｜User｜> brown 12345 dog's\n\n  def f(): # Größe 深度 🐳"


def convert(source: Path, out: Path, dtype: str = "auto", **options: Any) -> Path:
    prepared = prepare(source, target_of(out), dtype, **options)
    told: list[tuple[int, int]] = []
    prepared.write(out, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] <= prepared.bytes
    size = out.stat().st_size if out.is_file() else sum(file.stat().st_size for file in out.iterdir())
    assert size <= prepared.bytes
    return out


def saved(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    if name == "deepseek-moe":
        seeded.make_deepseek_moe(folder)
    else:
        seeded.save(name, folder, dtype=dtype)
    return write_tiny_tokenizer(folder)


def logits_of(source: Source, count: int = 100) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(0, 320, count).astype(np.int32)
    rows = np.arange(count, dtype=np.int32)
    batch = Batch(tokens, rows, np.zeros_like(rows), np.arange(2, dtype=np.int32)[None], rows)
    return NativeRunner(source, "float32", blocks=2).run(batch)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_bits(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name].view(torch.uint8), value.view(torch.uint8)), name


def with_wide_bias(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The routing bias has float32 in files of any type."""
    return {name: value.float() if "e_score" in name else value for name, value in tensors.items()}


@pytest.mark.parametrize("name", [*seeded.CONFIGS, "deepseek-moe"])
def test_to_gguf_and_back(name: str, tmp_path: Path) -> None:
    """Tensors come back bit for bit, the config as it was; and both files compute what the folder computes."""
    folder = saved(name, tmp_path / "model")
    file = convert(folder, tmp_path / "model.gguf")
    back = convert(file, tmp_path / "back")
    assert_same_bits(tensors_of(back), with_wide_bias(tensors_of(folder)))
    source, packed, again = open_source(folder), open_source(file), open_source(back)
    rope = source.config.rope
    if rope.kind == "llama3":  # a table of divisors names its rule up to what does not matter
        assert msgspec.structs.replace(again.config.rope, original=rope.original) == rope
    assert msgspec.structs.replace(again.config, rope=rope) == msgspec.structs.replace(source.config, mtp_layers=0)
    wanted = logits_of(source)
    if source.config.family in ("llama", "deepseek"):  # columns of a head are summed in another order
        assert np.abs(logits_of(packed) - wanted).max() < 1e-4
    else:
        np.testing.assert_array_equal(logits_of(packed), wanted)
    assert np.abs(logits_of(again) - wanted).max() <= (1e-4 if rope.kind == "llama3" else 0)


@pytest.mark.parametrize("magnitude", [{"attn_factor": 0.878}, {"attention_factor": 1.25}])
def test_what_changes_the_magnitude_of_yarn_comes_back(magnitude: dict[str, float], tmp_path: Path) -> None:
    folder = saved("qwen3", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config["rope_scaling"] = YARN | {"original_max_position_embeddings": 64} | magnitude
    (folder / "config.json").write_text(json.dumps(config))
    file = convert(folder, tmp_path / "x.gguf")
    wanted, again = (open_source(path).config.rope for path in (folder, convert(file, tmp_path / "back")))
    assert open_source(file).config.rotation.magnitude == pytest.approx(open_source(folder).config.rotation.magnitude)
    for name, value in magnitude.items():
        assert getattr(wanted, name) == value
        assert getattr(again, name) == pytest.approx(value)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_floats_come_back(dtype: str, tmp_path: Path) -> None:
    folder = saved("v3", tmp_path / "model", getattr(torch, dtype))
    back = convert(convert(folder, tmp_path / "x.gguf"), tmp_path / "back")
    assert_same_bits(tensors_of(back), with_wide_bias(tensors_of(folder)))
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("name", ["llama-gqa-linear", "llama-tied-bias", "llama-llama3", "qwen2", "qwen3", "v3"])
def test_transformers_reads_the_folder(name: str, tmp_path: Path) -> None:
    reference = seeded.save(name, tmp_path / "model")
    write_tiny_tokenizer(tmp_path / "model")
    back = convert(convert(tmp_path / "model", tmp_path / "x.gguf"), tmp_path / "back")
    tokens = torch.arange(90)[None] * 7 % 320
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32).eval()(tokens).logits
        wanted = reference(tokens).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    """The embedded model's: split as DeepSeek-V3 splits, with special tokens; and a template, which it has none of."""
    source = tmp_path / "source"
    shutil.copytree(embedded_path(), source)
    (source / "chat_template.jinja").write_text("{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}", "utf-8")
    file = convert(source, tmp_path / "e.gguf")
    back = convert(file, tmp_path / "back")
    wanted, by_file, got = Tokenizer.load(source), open_source(file).tokenizer(), Tokenizer.load(back)
    text = TEXT + (Path(__file__).read_text("utf-8"))
    for one in (by_file, got):
        assert (one.bos, one.eos, one.vocab_size) == (wanted.bos, wanted.eos, wanted.vocab_size)
        assert one.template == wanted.template is not None
        assert one.encode(text) == wanted.encode(text)
        assert [one.token_bytes(id) for id in range(4096)] == [wanted.token_bytes(id) for id in range(4096)]
        assert [one.is_special(id) for id in range(4096)] == [wanted.is_special(id) for id in range(4096)]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (back, source))
    assert ours(text).input_ids == theirs(text).input_ids
    talk = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(talk, tokenize=False) == theirs.apply_chat_template(talk, tokenize=False)


def test_the_end_that_the_tokenizer_names_comes_first(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [19, 4]}))
    keys = tokenizer_metadata(folder, 320)
    assert [keys[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "eom")] == [0, 1, 19, 4]
    back = convert(convert(folder, tmp_path / "x.gguf"), tmp_path / "back")
    assert sorted(Tokenizer.load(back).eos) == sorted(Tokenizer.load(folder).eos) == [1, 4, 19]


def test_ends_known_by_their_names_are_written_into_folders_alone(tmp_path: Path) -> None:
    """Other engines take a folder's ends from generation_config.json, and know those of a GGUF file by their names."""
    folder = saved("qwen2", tmp_path / "model")
    write_tiny_tokenizer(folder, specials=[*SPECIALS, "<|im_end|>", "<|endoftext|>"])
    turn, text = (Tokenizer.load(folder).special(end) for end in ("<|im_end|>", "<|endoftext|>"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [turn, text]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": "<|im_end|>"}))
    keys = tokenizer_metadata(folder, 320)
    assert [keys.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")] == [turn, None, None]
    back = convert(convert(folder, tmp_path / "x.gguf"), tmp_path / "back")
    ends = json.loads((back / "generation_config.json").read_text())["eos_token_id"]
    assert ends[0] == turn
    assert {turn, text} <= set(ends) == set(Tokenizer.load(folder).ends)


def test_more_ends_than_gguf_has_keys_for(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4, 19, 20]}))
    with pytest.raises(
        CheckpointError, match="names 4 tokens as ends; GGUF has keys for 3: take some out of eos_token_id"
    ):
        tokenizer_metadata(folder, 320)


def test_the_gguf_package_reads_the_file(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(convert(saved("v3", tmp_path / "deep-model"), tmp_path / "x.gguf", "q8_0"))
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert facts["general.name"] == "deep-model"
    assert facts["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert facts["tokenizer.ggml.pre"] == "gpt-2"
    assert facts["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1)
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["blk.1.ffn_down_exps.weight"] == GGMLQuantizationType.Q8_0
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.1.exp_probs_b.bias"] == GGMLQuantizationType.F32
    assert types["blk.0.attn_k_b.weight"] == GGMLQuantizationType.BF16  # rows of 16 values have no blocks
    shapes = {tensor.name: tensor.shape.tolist()[::-1] for tensor in reader.tensors}
    assert shapes["blk.1.ffn_down_exps.weight"] == [16, 64, 32]
    assert shapes["blk.0.attn_k_b.weight"] == [4, 32, 16]


def test_quantised_values_are_those_of_the_gguf_package_or_nearer(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "model", torch.float32)
    tensors = tensors_of(folder)
    eight, five = (
        GgufCheckpoint(convert(folder, tmp_path / f"{kind}.gguf", kind)).tensors for kind in ("q8_0", "q5_0")
    )
    for ours, theirs in (("blk.2.ffn_up", "model.layers.2.mlp.up_proj"), ("token_embd", "model.embed_tokens")):
        weight = tensors[f"{theirs}.weight"].numpy()
        wanted = gguf.quants.quantize(weight, GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(eight[f"{ours}.weight"].blocks(), wanted)
    weight, kind = tensors["model.layers.2.mlp.up_proj.weight"].numpy(), GGMLQuantizationType.Q5_0
    plain = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    searched = gguf.quants.dequantize(five["blk.2.ffn_up.weight"].blocks(), kind)
    assert np.square(searched - weight).sum() < 0.98 * np.square(plain - weight).sum()


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_has_more_bits_and_a_tied_embedding_is_the_head(tied: bool, tmp_path: Path) -> None:
    folder = saved("llama-tied-bias" if tied else "llama", tmp_path / "model", torch.float32)
    made = GgufCheckpoint(convert(folder, tmp_path / "x.gguf", "q4_0")).tensors
    types = {name: tensor.dtype for name, tensor in made.items()}
    assert ("output.weight" in types) != tied
    assert types["token_embd.weight" if tied else "output.weight"] == "q8_0"  # rows of 64 hold no q6_k
    assert types["blk.0.ffn_up.weight"] == "q4_0"


@pytest.mark.parametrize("dtype", ["q8_0", "q6_k", "q5_0", "q4_k", "q4_0"])
def test_every_type_loads_and_becomes_a_folder_again(dtype: str, tmp_path: Path) -> None:
    file = convert(saved("v3-wide", tmp_path / "model"), tmp_path / "x.gguf", dtype)
    source = open_source(file)
    assert source.stored == dtype
    again = Checkpoint(convert(file, tmp_path / "back", "float32"))
    for param, other in zip(source.params, again.params, strict=True):
        np.testing.assert_array_equal(source.whole(param), again.whole(other))
    assert Checkpoint(convert(file, tmp_path / "short")).stored == "bfloat16"
    smaller = convert(convert(saved("v3-wide", tmp_path / "m2"), tmp_path / "y.gguf"), tmp_path / "z.gguf", dtype)
    for name, tensor in GgufCheckpoint(smaller).tensors.items():
        np.testing.assert_array_equal(tensor.blocks(), GgufCheckpoint(file).tensors[name].blocks())


def test_older_files_with_kv_b_in_one_piece(tmp_path: Path) -> None:
    _, file = gguf_files.save("v2", tmp_path, split_kv_b=False)
    back, newer = convert(file, tmp_path / "back"), convert(file, tmp_path / "newer.gguf", "float32")
    wanted = logits_of(open_source(file))
    np.testing.assert_array_equal(logits_of(open_source(back)), wanted)
    assert GgufCheckpoint(newer).tensors["blk.0.attn_k_b.weight"].shape == (4, 32, 16)
    np.testing.assert_array_equal(logits_of(open_source(newer)), wanted)


@pytest.mark.parametrize("ue8m0", [False, True])
def test_block_fp8_becomes_bfloat16(ue8m0: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """weight times scale, rounded once; what was not quantised stays; no scale, and no word of them, is left."""
    folder = tmp_path / "fp8"
    values = publish(folder, monkeypatch, ue8m0=ue8m0)
    write_tiny_tokenizer(folder)
    out = convert(folder, tmp_path / "bf16", shard_bytes=200_000)
    before, after = tensors_of(folder), tensors_of(out)
    kept = {name: value for name, value in before.items() if not name.endswith("_scale_inv")}
    assert after.keys() == kept.keys()
    for name, value in kept.items():
        if value.dtype == torch.float8_e4m3fn:
            assert torch.equal(after[name], values[name].float().bfloat16())
        else:
            assert torch.equal(after[name], value)
    raw = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in raw
    assert raw.get("dtype", raw.get("torch_dtype")) == "bfloat16"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == kept.keys()
    sizes = [file.stat().st_size for file in out.glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) < 210_000
    assert Checkpoint(out).config == Checkpoint(folder).config
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert len(convert(folder, tmp_path / "x.gguf").read_bytes()) > 0
    assert GgufCheckpoint(tmp_path / "x.gguf").stored == "bfloat16"


def test_a_folder_of_another_precision(tmp_path: Path) -> None:
    out = convert(saved("v3", tmp_path / "model", torch.float32), tmp_path / "out", "bfloat16")
    tensors = tensors_of(out)
    assert tensors["model.layers.1.mlp.experts.0.up_proj.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.gate.weight"].dtype == torch.float32  # what would not be exact stays
    assert tensors["model.norm.weight"].dtype == torch.float32


def test_mtp_modules_stay_in_folders_and_are_left_out_of_gguf(tmp_path: Path) -> None:
    out = convert(embedded_path(), tmp_path / "out")
    assert_same_bits(tensors_of(out), tensors_of(embedded_path()))
    assert open_source(out).mtp_params
    assert not any("blk.4" in name for name in GgufCheckpoint(convert(embedded_path(), tmp_path / "x.gguf")).tensors)


@pytest.mark.parametrize("name", {behaviour(name): name for name in reversed(SPLITS) if name != "default"}.values())
def test_ways_of_splitting_are_told_apart(name: str, tmp_path: Path) -> None:
    """The first name of each behaviour is found; here qwen2's is DeepSeek's, by the special tokens."""
    document = json.loads((write_tiny_tokenizer(tmp_path) / "tokenizer.json").read_text("utf-8"))
    cuts, takes_whole, composes = behaviour(name)
    splits = [{"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False} for e in cuts]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, level]}
    document["normalizer"] = {"type": "NFC"} if composes else None
    document["model"]["ignore_merges"] = takes_whole
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    found = tokenizer_metadata(tmp_path, 320)["tokenizer.ggml.pre"]
    assert found == {"qwen2": "deepseek-r1-qwen"}.get(name, name)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN = {"type": "Split", "pattern": {"Regex": SPLITS["qwen2"][0]}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("parts", "normalizer", "name"),
    [
        ([DIGITS, BYTES | {"use_regex": True}], None, "smollm"),
        ([BYTES | {"use_regex": True}], None, "gpt-2"),
        ([QWEN, BYTES | {"use_regex": False}], {"type": "NFC"}, "qwen2"),
    ],
)
def test_tokenizers_as_their_makers_write_them(
    parts: list[dict[str, Any]], normalizer: dict[str, str] | None, name: str, tmp_path: Path
) -> None:
    """SmolLM2's, GPT-2's and Qwen2.5's, which put nothing in front of a text."""
    path = write_tiny_tokenizer(tmp_path, specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) / "tokenizer.json"
    document = json.loads(path.read_text("utf-8")) | {"normalizer": normalizer, "post_processor": None}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(document), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    )
    keys = tokenizer_metadata(tmp_path, 320)
    assert (keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.add_bos_token"]) == (name, False)
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_an_unknown_way_of_splitting(tmp_path: Path) -> None:
    path = write_tiny_tokenizer(tmp_path) / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "e"}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, document["pre_tokenizer"]]}
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(CheckpointError, match="splits text in a way that GGUF has no name for; supported are those of"):
        split_name(path, Tokenizer.load(tmp_path))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = saved("v3", tmp_path / "model")
    packed, file = tmp_path / "x.deepwell", convert(folder, tmp_path / "x.gguf")
    prepare(folder, "packed").write(packed, lambda done, total: None)
    refused: list[tuple[Path, Target, str, str]] = [
        (folder, "gguf", "int8", "dtype is int8; a gguf target allows auto, float32, float16, bfloat16, q8_0"),
        (folder, "safetensors", "q4_0", "a safetensors target allows auto, float32, float16, bfloat16$"),
        (folder, "packed", "q4_0", "a packed target allows auto, float32, bfloat16, int8, int4"),
        (packed, "gguf", "auto", "is a packed file; convert what it was made of"),
        (packed, "safetensors", "auto", "is a packed file; convert what it was made of"),
        (file, "gguf", "auto", "is a GGUF file already; say with --dtype"),
    ]
    for source, target, dtype, said in refused:
        with pytest.raises(ConfigError, match=said):
            prepare(source, target, dtype)
    unweighed: list[tuple[Target, str, str]] = [
        ("gguf", "q8_0", "quantised to q6_k or q5_0 or q4_k or q4_0, and dtype is q8_0 for a gguf target"),
        ("gguf", "auto", "and dtype is auto for a gguf target"),
        ("packed", "int8", "quantised to int4, and dtype is int8 for a packed target"),
        ("safetensors", "bfloat16", "quantised to fewer bits, and dtype is bfloat16 for a safetensors target"),
    ]
    for target, dtype, said in unweighed:
        with pytest.raises(ConfigError, match=f"importance weighs what is .*{said}"):
            prepare(folder, target, dtype, importance=file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}, "yarn with mscale 1 and mscale_all_dim 0.5"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"vocab_size": 319}, "tensor model.embed_tokens.weight has shape"),
    ],
)
def test_configs_that_gguf_cannot_say(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = saved("v3-plain", tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises((ConfigError, CheckpointError), match=said):
        prepare(folder, "gguf")


def test_a_family_that_gguf_is_not_written_for() -> None:
    config = msgspec.structs.replace(open_source(embedded_path()).config, family="deepseek_v9")
    with pytest.raises(ConfigError, match="family deepseek_v9 cannot be written as GGUF; supported are llama, qwen2"):
        architecture(config)
    with pytest.raises(ConfigError, match=r"no config\.json is known for deepseek_v9"):
        config_json(config, bos=0, eos=1, dtype="bfloat16")


def test_two_tensors_of_one_name() -> None:
    source = Checkpoint(embedded_path())
    tensors = as_hugging_face(source)
    with pytest.raises(CheckpointError, match=r"two tensors of the source would be called output_norm\.weight"):
        as_gguf(source.config, [*tensors, next(t for t in tensors if t.name == "model.norm.weight")])


def test_values_beyond_a_type_name_the_tensor(tmp_path: Path) -> None:
    folder = saved("qwen2", tmp_path / "model", torch.float32)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e30
    save_file(tensors, folder / "model.safetensors")
    prepared = prepare(folder, "gguf", "float16")
    with pytest.raises(ConfigError, match=r"blk\.1\.ffn_up\.weight holds 1e\+30, which is too large for float16"):
        prepared.write(tmp_path / "x.gguf", lambda done, total: None)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        prepare(folder, "gguf").write(tmp_path / "y.gguf", lambda done, total: None)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "the file is cut off"),
        (lambda raw: raw[:4] + (1).to_bytes(4, "little") + raw[8:], "the version is 1; supported are 2 and 3"),
        (lambda raw: raw[:40], "ends|cut off"),
    ],
)
def test_broken_gguf_files(damage: Any, said: str, tmp_path: Path) -> None:
    file = convert(saved("qwen2", tmp_path / "model"), tmp_path / "x.gguf")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        prepare(file, "safetensors")


def test_a_gguf_file_says_the_type_of_most_weights(tmp_path: Path) -> None:
    """One tensor of float32, though it is the largest, makes no float32 model."""
    folder = saved("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    assert max(weights, key=lambda name: weights[name].numel()) in (embedding, "lm_head.weight")
    mixed = {name: value if name == embedding else value.bfloat16() for name, value in weights.items()}
    save_file(mixed, folder / "model.safetensors")
    made = GgufCheckpoint(convert(folder, tmp_path / "x.gguf"))
    assert (made.stored, made.metadata["general.file_type"]) == ("bfloat16", 32)
