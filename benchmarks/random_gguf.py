"""GGUF files of true shapes with random weights: for comparing speeds, where only shapes and types matter.

    python benchmarks/random_gguf.py v2lite q4_0 v2lite-q4_0.gguf

Shapes: v2lite (DeepSeek-V2-Lite), ds7b (DeepSeek LLM 7B), coder1b (DeepSeek-Coder 1.3B). Mixes: q4_0, and q4_k_m with
6-bit tensors and fallback types where llama-quantize puts them. Needs the gguf package (pip install gguf). Nothing
that such a model writes means anything, and its router spreads tokens over the experts more evenly than a trained one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from deepwell.files import replacing

_POOL_BYTES = 64 << 20
"""Blocks of a type are drawn once into a pool; tensors are cut from it at different places."""
_SIGMA = 0.02
"""Spread of the weights."""
_MIXES = ("q4_0", "q4_k_m")

Bytes = NDArray[np.uint8]


class Shape(NamedTuple):
    """Of a model; `experts` 0 is a llama of plain attention, else a deepseek2 of latent attention and experts."""

    hidden: int
    layers: int
    inter: int
    heads: int
    vocab: int
    context: int
    experts: int = 0
    experts_used: int = 0
    experts_shared: int = 0
    expert_inter: int = 0
    dense_layers: int = 0
    latent: int = 0
    rope: int = 0
    nope: int = 0
    value: int = 0


SHAPES = {
    "v2lite": Shape(2048, 27, 10944, 16, 102400, 32768, 64, 6, 2, 1408, 1, 512, 64, 128, 128),
    "ds7b": Shape(4096, 30, 11008, 32, 102400, 16384),
    "coder1b": Shape(2048, 24, 5504, 16, 32256, 16384),
}


class Tensor(NamedTuple):
    """`shape` has the output dimension first. `active` is the share of it that decoding a token reads."""

    name: str
    shape: tuple[int, ...]
    type: Type
    active: float = 1.0

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a GGUF file of a true shape with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("mix", choices=_MIXES)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tensors = write(args.out, args.shape, args.mix)
    read = sum(t.nbytes * t.active for t in tensors)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.3f} GB, {read / 1e9:.3f} GB read per decoded token")


def write(out: Path, name: str, mix: str) -> list[Tensor]:
    """Write the file under a temporary name, then give it its own; the tensors that are in it."""
    shape = SHAPES[name]
    tensors = list(tensors_of(shape, mix))
    with replacing(out) as unfinished:
        _write(unfinished, name, shape, mix, tensors)
    return tensors


def tensors_of(shape: Shape, mix: str) -> Iterator[Tensor]:
    """Every tensor in the file's order, of the types that llama-quantize would choose."""
    base = Type.Q4_K if mix == "q4_k_m" else Type.Q4_0
    hidden = shape.hidden
    yield _quantised("token_embd.weight", (shape.vocab, hidden), base, active=1 / shape.vocab)
    yield Tensor("output_norm.weight", (hidden,), Type.F32)
    yield _quantised("output.weight", (shape.vocab, hidden), Type.Q6_K)
    for layer in range(shape.layers):
        high = Type.Q6_K if mix == "q4_k_m" and _more_bits(layer, shape.layers) else base
        block = f"blk.{layer}."
        yield Tensor(block + "attn_norm.weight", (hidden,), Type.F32)
        yield from _latent_attention(block, shape, base) if shape.experts else _attention(block, shape, base, high)
        yield Tensor(block + "ffn_norm.weight", (hidden,), Type.F32)
        if shape.experts and layer >= shape.dense_layers:
            yield from _experts(block, shape, base, high)
        else:
            yield from _feed_forward(block, "", hidden, shape.inter, base, high)


def _more_bits(layer: int, layers: int) -> bool:
    """The layers whose sensitive tensors get 6 bits in the q4_k_m mix: the ends, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _quantised(name: str, shape: tuple[int, ...], wanted: Type, active: float = 1.0) -> Tensor:
    """Types of 256-blocks give way to types of 32-blocks where a row is not a multiple of 256."""
    fallback = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
    return Tensor(name, shape, fallback.get(wanted, wanted) if shape[-1] % 256 else wanted, active)


def _attention(block: str, shape: Shape, base: Type, high: Type) -> Iterator[Tensor]:
    for name, kind in (("attn_q", base), ("attn_k", base), ("attn_v", high), ("attn_output", base)):
        yield _quantised(f"{block}{name}.weight", (shape.hidden, shape.hidden), kind)


def _latent_attention(block: str, shape: Shape, base: Type) -> Iterator[Tensor]:
    heads, latent = shape.heads, shape.latent
    yield _quantised(block + "attn_q.weight", (heads * (shape.nope + shape.rope), shape.hidden), base)
    yield _quantised(block + "attn_kv_a_mqa.weight", (latent + shape.rope, shape.hidden), base)
    yield Tensor(block + "attn_kv_a_norm.weight", (latent,), Type.F32)
    yield _quantised(block + "attn_k_b.weight", (heads, latent, shape.nope), base)
    yield _quantised(block + "attn_v_b.weight", (heads, shape.value, latent), base)
    yield _quantised(block + "attn_output.weight", (shape.hidden, heads * shape.value), base)


def _feed_forward(block: str, kind: str, hidden: int, inter: int, base: Type, high: Type) -> Iterator[Tensor]:
    yield _quantised(f"{block}ffn_gate{kind}.weight", (inter, hidden), base)
    yield _quantised(f"{block}ffn_up{kind}.weight", (inter, hidden), base)
    yield _quantised(f"{block}ffn_down{kind}.weight", (hidden, inter), high)


def _experts(block: str, shape: Shape, base: Type, high: Type) -> Iterator[Tensor]:
    count, hidden, inter = shape.experts, shape.hidden, shape.expert_inter
    active = shape.experts_used / count
    yield Tensor(block + "ffn_gate_inp.weight", (count, hidden), Type.F32)
    yield _quantised(block + "ffn_gate_exps.weight", (count, inter, hidden), base, active)
    yield _quantised(block + "ffn_up_exps.weight", (count, inter, hidden), base, active)
    yield _quantised(block + "ffn_down_exps.weight", (count, hidden, inter), high, active)
    yield from _feed_forward(block, "_shexp", hidden, inter * shape.experts_shared, base, high)


def _write(path: Path, name: str, shape: Shape, mix: str, tensors: list[Tensor]) -> None:
    writer = gguf.GGUFWriter(path, "deepseek2" if shape.experts else "llama")
    _add_facts(writer, name, shape, mix)
    _add_tokenizer(writer, shape.vocab)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task(f"{name} {mix}", total=sum(t.nbytes for t in tensors))
            pools = _Pools(np.random.default_rng(0))
            for tensor in tensors:
                writer.write_padding(file, file.tell())
                for piece in pools.pieces(tensor):
                    file.write(memoryview(piece))
                    progress.advance(task, piece.nbytes)
            writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _add_facts(writer: gguf.GGUFWriter, name: str, shape: Shape, mix: str) -> None:
    writer.add_name(f"random-{name}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M if mix == "q4_k_m" else gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inter)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if not shape.experts:
        writer.add_head_count_kv(shape.heads)
        writer.add_rope_dimension_count(shape.hidden // shape.heads)
        return
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(shape.rope)
    writer.add_leading_dense_block_count(shape.dense_layers)
    writer.add_kv_lora_rank(shape.latent)
    writer.add_key_length(shape.latent + shape.rope)
    writer.add_value_length(shape.latent)
    writer.add_key_length_mla(shape.nope + shape.rope)
    writer.add_value_length_mla(shape.value)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)
    writer.add_expert_shared_count(shape.experts_shared)
    writer.add_expert_feed_forward_length(shape.expert_inter)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """A byte-level BPE that knows every byte and merges nothing but "a b"; the last two tokens are bos and eos."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    tokens = [chr(code) for code in (*printable, *others)]
    tokens += [f"tok{number}" for number in range(len(tokens), vocab - 2)] + ["<bos>", "<eos>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-llm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (vocab - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(vocab - 2)
    writer.add_eos_token_id(vocab - 1)
    writer.add_add_bos_token(False)


class _Pools:
    """Random blocks by type. A tensor's bytes begin at a place of its own, so that no two tensors are equal."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._pools: dict[Type, Bytes] = {}
        self._tensors = 0

    def pieces(self, tensor: Tensor) -> Iterator[NDArray[np.generic]]:
        """The tensor's data, piece by piece."""
        if tensor.type == Type.F32:
            norm = len(tensor.shape) == 1
            values = np.ones(tensor.shape) if norm else self._random.standard_normal(tensor.shape) * 0.05
            yield values.astype(np.float32)
            return
        pool = self._pool(tensor.type)
        size = gguf.GGML_QUANT_SIZES[tensor.type][1]
        self._tensors += 1
        start, left = self._tensors * 7919 * size % (len(pool) // size // 2 * size), tensor.nbytes
        while left:
            piece = pool[start : start + left]
            yield piece
            left -= len(piece)
            start = 0

    def _pool(self, kind: Type) -> Bytes:
        if kind not in self._pools:
            blocks = _POOL_BYTES // gguf.GGML_QUANT_SIZES[kind][1]
            self._pools[kind] = np.concatenate(_BLOCKS[kind](self._random, blocks), axis=1).reshape(-1)
        return self._pools[kind]


def _halves(random: np.random.Generator, count: int, scale: float) -> Bytes:
    """float16 scales around `scale`, two bytes each."""
    return (scale * random.uniform(0.7, 1.3, (count, 1))).astype(np.float16).view(np.uint8)


def _nibbles(random: np.random.Generator, count: int, width: int) -> Bytes:
    """Two normally spread 4-bit values (middle 8) per byte."""
    low, high = (
        np.clip(np.rint(random.standard_normal((count, width), dtype=np.float32) * 2.7 + 8), 0, 15).astype(np.uint8)
        for _ in range(2)
    )
    return low | high << 4


def _uniform(random: np.random.Generator, count: int, width: int) -> Bytes:
    return random.integers(0, 256, (count, width), dtype=np.uint8)


def _q8(random: np.random.Generator, count: int) -> Bytes:
    values = np.rint(random.standard_normal((count, 32), dtype=np.float32) * 40)
    return np.clip(values, -127, 127).astype(np.int8).view(np.uint8)


def _q4_k_scales(random: np.random.Generator, count: int) -> Bytes:
    """Eight 6-bit scales and eight equal 6-bit minima in 12 bytes: low 6 bits, and 2 bits on top of the others."""
    scales = random.integers(20, 60, (count, 8), dtype=np.uint8)
    first = scales[:, :4] & 63 | scales[:, 4:] >> 4 << 6
    return np.concatenate([first, first, scales[:, 4:] & 15 | (scales[:, 4:] & 15) << 4], axis=1)


def _q4_k_halves(count: int) -> Bytes:
    """The scale of the scales, and that of the minima: 8 of it, which centres the weights."""
    scale = _SIGMA / 2.7 / 40
    return np.tile(np.array([scale, 8 * scale], np.float16).view(np.uint8), (count, 1))


def _q6_k_scales(random: np.random.Generator, count: int) -> Bytes:
    return random.integers(40, 100, (count, 16), dtype=np.int8).view(np.uint8)


_BLOCKS: dict[Type, Callable[[np.random.Generator, int], list[Bytes]]] = {
    Type.Q4_0: lambda r, n: [_halves(r, n, _SIGMA / 2.7), _nibbles(r, n, 16)],
    Type.Q5_0: lambda r, n: [_halves(r, n, _SIGMA / 9.2), _uniform(r, n, 20)],
    Type.Q8_0: lambda r, n: [_halves(r, n, _SIGMA / 40), _q8(r, n)],
    Type.Q4_K: lambda r, n: [_q4_k_halves(n), _q4_k_scales(r, n), _nibbles(r, n, 128)],
    Type.Q6_K: lambda r, n: [_uniform(r, n, 192), _q6_k_scales(r, n), _halves(r, n, _SIGMA / 18 / 70)],
}
"""The parts of a type's block, in the order in which it stores them."""


if __name__ == "__main__":
    main()
