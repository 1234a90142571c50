"""A model's tensors as converters lay them out in a GGUF file, and back: names, stacked experts, the halves of kv_b,
rows of q and k in another order. `as_gguf` and `of_gguf` undo each other, value for value."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from deepwell.errors import CheckpointError
from deepwell.model.config import MlaConfig, ModelConfig
from deepwell.model.params import Param
from deepwell.weights.gguf.checkpoint import GgufCheckpoint, joined
from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.gguf.keys import PAIRED
from deepwell.weights.gguf.names import gguf_name
from deepwell.weights.importance import gguf_tensors
from deepwell.weights.tensor_stream import Rows, TensorStream

_Q_OR_K = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)")
_FALLBACK = {"q4_k": "q5_0", "q6_k": "q8_0"}
_SENSITIVE = {"q5_0": "q6_k", "q4_k": "q6_k", "q4_0": "q6_k"}
"""Types of the head, whose errors reach every logit, beside matrices of few bits."""


def as_gguf(
    config: ModelConfig,
    tensors: Sequence[TensorStream],
    rope_freqs: Rows | None = None,
    importance: Mapping[str, Rows] | None = None,
) -> list[TensorStream]:
    """Tensors in Hugging Face's layout under GGUF's names, in its layout. The same values, none of them rounded.

    `tensors` are those of the decoder; those of multi-token prediction modules are left out. `importance`
    is by parameter (weights/importance.py). CheckpointError if two of the tensors would have one name.
    """
    made = [] if rope_freqs is None else [_constant("rope_freqs.weight", rope_freqs)]
    experts: dict[str, list[TensorStream]] = {}
    modules = tuple(f"model.layers.{config.layers + depth}." for depth in range(config.mtp_layers))
    for tensor in tensors:
        if modules and tensor.name.startswith(modules):
            continue
        name, index = gguf_name(tensor.name)
        if index is not None:
            experts.setdefault(name, []).append(tensor)
        elif name.endswith("attn_kv_b.weight") and config.mla is not None:
            made += _halves(name, tensor, config.heads, config.mla)
        else:
            pairs = config.family in PAIRED and _Q_OR_K.fullmatch(tensor.name)
            made.append(renamed(_paired(tensor, config.head_dim) if pairs else tensor, name))
    made += [_stacked(name, parts) for name, parts in experts.items()]
    made.sort(key=_place)
    for one, other in itertools.pairwise(made):
        if one.name == other.name:
            raise CheckpointError(f"two tensors of the source would be called {one.name}")
    return _weighed(config, made, importance) if importance else made


def _weighed(
    config: ModelConfig, tensors: Sequence[TensorStream], importance: Mapping[str, Rows]
) -> list[TensorStream]:
    """Each tensor with the importances of its columns, where they are known."""
    known = {name: np.atleast_2d(importance[key]) for name, key in gguf_tensors(config).items() if key in importance}
    return [msgspec.structs.replace(one, importance_PK=known.get(one.name)) for one in tensors]


def of_gguf(source: GgufCheckpoint) -> list[TensorStream]:
    """The decoder's tensors as a Hugging Face checkpoint has them."""
    return [tensor for param in source.params for tensor in _of_gguf(source, param)]


def renamed(tensor: TensorStream, name: str) -> TensorStream:
    return TensorStream(name, tensor.shape, tensor.dtype, tensor.read, tensor.unit)


def head_name(config: ModelConfig) -> str:
    """The tensor whose errors reach every logit."""
    return "token_embd.weight" if config.tied else "output.weight"


def gguf_type(tensor: TensorStream, wanted: str, head: str) -> str:
    """The type to store a tensor in: vectors and routers in float32, and what has no whole blocks in the next best.
    The one called `head`, which a tied embedding is too, gets more bits.

    `wanted` may be `auto`: the type that the tensor has now, bfloat16 for what is neither float nor a ggml type.
    """
    if _stays_exact(tensor):
        return "f32"
    now = "bf16" if tensor.dtype == "float8" else tensor.dtype
    kind = now if wanted == "auto" else wanted
    if tensor.name == head:
        kind = _SENSITIVE.get(kind, kind)
    if kind in _FALLBACK and tensor.width % 256:
        kind = _FALLBACK[kind]
    if kind.startswith("q") and tensor.width % 32:
        return now if now in ("f32", "f16", "bf16") else "bf16"
    return kind


def _stays_exact(tensor: TensorStream) -> bool:
    return len(tensor.shape) == 1 or tensor.name.endswith((".ffn_gate_inp.weight", ".indexer.proj.weight"))


def otherwise(planned: Sequence[tuple[TensorStream, str]], wanted: str) -> str:
    """How many matrices are not `wanted`, what they are, and why; empty if all rows have whole blocks of it."""
    matrices = [(tensor, written) for tensor, written in planned if not _stays_exact(tensor)]
    found: Counter[tuple[str, str]] = Counter()
    for tensor, written in matrices:
        if wanted.startswith("q") and written != wanted:
            block = 32 if tensor.width % 32 else 256 if wanted in _FALLBACK and tensor.width % 256 else 0
            found[written, f"rows of no whole {block} values" if block else "the head takes more bits"] += 1
    if not any("rows" in why for _, why in found):
        return ""
    told = ", ".join(f"{count} became {written} ({why})" for (written, why), count in found.most_common())
    return f"{wanted} was asked for; of {len(matrices)} matrices {told}"


def _place(tensor: TensorStream) -> tuple[int, str]:
    """The embedding, then layer after layer: the order in which a reader wants them."""
    if tensor.name.startswith("blk."):
        return int(tensor.name.split(".")[1]), tensor.name
    return (1 << 30 if tensor.name.startswith("output") else -1), tensor.name


def _constant(name: str, values: Rows) -> TensorStream:
    return TensorStream(name, values.shape, "f32", lambda begin, end: values[begin:end, None])


def _stacked(name: str, parts: Sequence[TensorStream]) -> TensorStream:
    """The matrices of all experts behind each other, (experts, out, in)."""
    height = parts[0].count

    def read(begin: int, end: int) -> Rows:
        return np.concatenate([part.read(0, height) for part in parts[begin // height : end // height]])

    return TensorStream(name, (len(parts), *parts[0].shape), parts[0].dtype, read, height)


def _halves(name: str, tensor: TensorStream, heads: int, mla: MlaConfig) -> Iterator[TensorStream]:
    """kv_b per head for absorbed attention: the keys' half transposed (latent, nope), the values' (value, latent)."""
    height, latent, nope = mla.nope + mla.value, mla.kv_lora, mla.nope

    def head(index: int) -> Rows:
        return tensor.read(index * height, (index + 1) * height)

    def keys(begin: int, end: int) -> Rows:
        return np.concatenate([head(index)[:nope].T for index in range(begin // latent, end // latent)])

    def values(begin: int, end: int) -> Rows:
        return np.concatenate([head(index)[nope:] for index in range(begin // mla.value, end // mla.value)])

    yield TensorStream(name.replace("kv_b", "k_b"), (heads, latent, nope), tensor.dtype, keys, latent)
    yield TensorStream(name.replace("kv_b", "v_b"), (heads, mla.value, latent), tensor.dtype, values, mla.value)


def _of_gguf(source: GgufCheckpoint, param: Param) -> Iterator[TensorStream]:
    if param.kind == "kv_b" and (halves := source.kv_halves(param)) is not None:
        keys, values = halves
        height = keys.shape[2] + values.shape[1]

        def read(begin: int, end: int) -> Rows:
            return np.concatenate([joined(keys[head], values[head]) for head in range(begin // height, end // height)])

        wider = max(keys.dtype, values.dtype, key=lambda kind: BY_NAME[kind].layout.itemsize / BY_NAME[kind].width)
        yield TensorStream(param.sources[0], param.shape, wider, read, height)
        return
    for name, tensor in source.sources(param):
        if source.config.interleaved and _Q_OR_K.fullmatch(name):
            height = source.config.head_dim
            yield TensorStream(name, tensor.shape, tensor.dtype, partial(_halved, tensor.rows, height), height)
        else:
            yield TensorStream(name, tensor.shape, tensor.dtype, tensor.rows)


def _halved(rows: Callable[[int, int], Rows], height: int, begin: int, end: int) -> Rows:
    """Rows of heads whose rotated pairs are neighbours, as two halves of pairs."""
    values = rows(begin, end)
    return values.reshape(-1, height // 2, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _paired(tensor: TensorStream, height: int) -> TensorStream:
    """The inverse: each head's two halves of rotated pairs, as neighbours."""

    def read(begin: int, end: int) -> Rows:
        values = tensor.read(begin, end)
        return values.reshape(-1, 2, height // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    return msgspec.structs.replace(tensor, read=read, unit=height)
