"""What is written and read again is what it was: a GGUF file's config, layout and tokenizer, and safetensors."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.model.config import IndexConfig, MlaConfig, ModelConfig, MoeConfig, check_config
from deepwell.model.params import param_specs
from deepwell.model.rope import RopeConfig
from deepwell.ops.base import Routing
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.layout import as_gguf, of_gguf
from deepwell.weights.gguf.metadata import model_metadata, rope_freqs
from deepwell.weights.gguf.reader import GgufFile
from deepwell.weights.gguf.tokenizer import tokenizer_from
from deepwell.weights.gguf.vocabulary import tokenizer_metadata
from deepwell.weights.gguf.writer import write_gguf
from deepwell.weights.safetensors import TYPES, read
from deepwell.weights.safetensors_writer import write_safetensors
from deepwell.weights.tensor_stream import TensorStream
from deepwell.weights.tokenizer import Tokenizer
from fakes import SPECIALS, write_tiny_tokenizer


def silent(done: int, total: int) -> None:
    pass


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats that GGUF's float32 keeps."""
    return st.floats(low, high, width=32).map(lambda x: float(str(np.float32(x))))


@st.composite
def ropes(draw: st.DrawFn, mla: bool) -> RopeConfig:
    theta, kind = draw(numbers(2, 1e6)), draw(st.sampled_from(["default", "linear", "yarn"]))
    if kind == "default":
        return RopeConfig(theta=theta, original=512)
    factor = draw(numbers(1.5, 64))
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=factor, original=512)
    mscale = draw(st.sampled_from([0.0, 0.707, 1.0])) if mla else 0.0
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original=draw(st.integers(16, 512)),
        beta_fast=draw(numbers(8, 64)),
        beta_slow=draw(numbers(0.5, 4)),
        mscale=mscale,
        mscale_all_dim=mscale,
    )


@st.composite
def experts(draw: st.DrawFn, sigmoid: bool) -> MoeConfig:
    groups = draw(st.sampled_from([1, 2])) if sigmoid else 1
    method: Literal["noaux_tc", "greedy"] = "noaux_tc" if sigmoid else "greedy"
    routing = Routing(
        experts=4,
        top_k=draw(st.integers(1, 2)),
        scoring="sigmoid" if sigmoid else "softmax",
        method=method,
        n_group=groups,
        topk_group=groups,
        normalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5, 16.0])),
    )
    return MoeConfig(
        routing, inter=32, shared=draw(st.integers(0, 2)), first_dense=draw(st.integers(0, 1)), bias=sigmoid
    )


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    family = draw(
        st.sampled_from(["llama", "qwen2", "qwen3", "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32"])
    )
    latent = family in ("deepseek_v2", "deepseek_v3", "deepseek_v32")
    q_lora = 48 if family == "deepseek_v32" else draw(st.sampled_from([None, 48]))
    mla = MlaConfig(q_lora=q_lora, kv_lora=32, nope=16, rope=8, value=24) if latent else None
    sigmoid = family in ("deepseek_v3", "deepseek_v32")
    config = ModelConfig(
        family=family,
        vocab=64,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=4 if latent else draw(st.sampled_from([1, 2, 4])),
        head_dim=24 if latent else 16,
        inter=96,
        eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope=(rope := draw(ropes(latent))),
        context=rope.stretched(512),
        mla=mla,
        moe=draw(experts(sigmoid)) if family.startswith("deepseek") else None,
        tied=draw(st.booleans()),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        interleaved=family in ("llama", "deepseek"),
        index=IndexConfig(2, 16, draw(st.integers(1, 64))) if family == "deepseek_v32" else None,
    )
    check_config(config)
    return config


def random_tensors(config: ModelConfig) -> list[TensorStream]:
    """The decoder's tensors in a checkpoint's layout, of small whole numbers."""
    rng, made = np.random.default_rng(0), []
    for param in param_specs(config):
        rows = int(np.prod(param.shape[:-1])) // len(param.sources) if len(param.shape) > 1 else param.shape[0]
        shape = (rows, param.shape[-1]) if len(param.shape) > 1 else (rows,)
        for source in param.sources:
            values = rng.integers(-99, 99, (rows, shape[-1] if len(shape) > 1 else 1)).astype(np.float32)
            made.append(TensorStream(source, shape, "f32", lambda begin, end, values=values: values[begin:end]))
    return made


def whole(tensor: TensorStream) -> Any:
    return np.concatenate(list(tensor.pieces()))


@settings(max_examples=40)
@given(config=configs())
def test_config_and_layout_come_back(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "both-ways.gguf"
    file.unlink(missing_ok=True)
    tensors = random_tensors(config)
    planned = [(tensor, "f32") for tensor in as_gguf(config, tensors, rope_freqs(config))]
    write_gguf(file, model_metadata(config, "x", "f32"), planned, silent, lambda: None)
    source = GgufCheckpoint(file)
    assert source.config == config
    back = {tensor.name: tensor for tensor in of_gguf(source)}
    assert back.keys() == {tensor.name for tensor in tensors}
    for tensor in tensors:
        assert back[tensor.name].shape == tensor.shape
        np.testing.assert_array_equal(whole(back[tensor.name]), whole(tensor))


@settings(max_examples=10)
@given(vocab=st.integers(270, 330), specials=st.integers(2, len(SPECIALS)), text=st.text(max_size=60))
def test_a_tokenizer_comes_back(vocab: int, specials: int, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    write_tiny_tokenizer(folder, vocab, SPECIALS[:specials])
    named = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"chat_template": templates}), "utf-8")
    wanted, file = Tokenizer.load(folder), folder / "tokenizer.gguf"
    metadata = tokenizer_metadata(folder, wanted.vocab_size + 3)
    write_gguf(file, {"general.architecture": "llama"} | metadata, [], silent, lambda: None)
    got = tokenizer_from(GgufFile(file))
    assert (got.bos, got.eos, got.template) == (wanted.bos, wanted.eos, wanted.template)
    assert (got.template, got.tool_template, wanted.tool_template) == ("{{ a }}", "{{ tools }}", "{{ tools }}")
    assert Tokenizer.restore(wanted.state()).tool_template == "{{ tools }}"
    assert got.encode(text) == wanted.encode(text)
    assert list(map(got.token_bytes, range(wanted.vocab_size))) == list(
        map(wanted.token_bytes, range(wanted.vocab_size))
    )
    assert list(map(got.special, SPECIALS)) == list(map(wanted.special, SPECIALS))


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=8),
    kinds=st.lists(st.sampled_from(["f32", "f16", "bf16"]), min_size=8, max_size=8),
    most=st.integers(1, 4000),
)
def test_safetensors_come_back(
    shapes: list[list[int]], kinds: list[str], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In as many shards as it takes; whole numbers up to 99 are exact in every type."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    rng, planned, values = np.random.default_rng(0), [], {}
    for number, shape in enumerate(shapes):
        name = f"tensor.{number}"
        whole_numbers = values[name] = rng.integers(-99, 99, shape).astype(np.float32)
        rows = whole_numbers.reshape(-1, shape[-1] if len(shape) > 1 else 1)
        tensor = TensorStream(name, tuple(shape), "f32", lambda begin, end, rows=rows: rows[begin:end])
        planned.append((tensor, kinds[number]))
    write_safetensors(folder, planned, most, silent, lambda: None)
    back = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in read(shard).items()}
    assert back.keys() == values.keys()
    for (tensor, kind), wanted in zip(planned, values.values(), strict=True):
        assert TYPES[back[tensor.name].dtype].ggml == kind
        np.testing.assert_array_equal(back[tensor.name].float32(), wanted)
