"""Parameters as the native backend keeps them: in which storage, and how they get there without a copy too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.identity import Contents
from deepwell.model.accounting import kept_as
from deepwell.model.config import ModelConfig
from deepwell.model.params import Param, param_specs
from deepwell.ops import native
from deepwell.ops.base import MlaShape
from deepwell.ops.storages import OF_GGML
from deepwell.options import Dtype
from deepwell.weights.chunks import RELEASE_EVERY
from deepwell.weights.digests import Digests
from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.gguf.layout import gguf_type, head_name
from deepwell.weights.gguf.names import gguf_name
from deepwell.weights.importance import QUERY
from deepwell.weights.packed import parts_of
from deepwell.weights.quantize import quantise_int4
from deepwell.weights.source import Source
from deepwell.weights.tensor_stream import Rows, TensorStream

DType = Dtype
"""What may be asked for; `auto` keeps what a file holds."""
Importance = Mapping[str, NDArray[np.float32]]
Progress = Callable[[int, int], None]
"""Told how many weights are packed, and of how many."""


_EXACT = ("vector", "router")
"""Kinds of parameters kept in float32: routers decide by small differences."""


def storage(dtype: str, stored: str) -> native.Storage:
    """How most matrices are kept: as asked, or for `auto` as the file has them.

    float16 of a safetensors file widens to float32, block FP8 to bfloat16.
    """
    if dtype not in get_args(DType):
        raise ConfigError(f"dtype is {dtype!r}; allowed are {', '.join(get_args(DType))}")
    if dtype != "auto":
        return cast(native.Storage, dtype)
    if stored in ("bfloat16", "float8"):
        return "bfloat16"
    return cast(native.Storage, OF_GGML.get(stored, stored)) if stored not in ("float32", "float16") else "float32"


def label(source: Source, dtype: DType) -> str:
    """What the model is called to be kept as: a file's own type with `auto`, else the storage of most matrices."""
    return source.stored if dtype == "auto" and source.is_blocks else storage(dtype, source.stored)


def storages(source: Source, dtype: DType) -> dict[str, native.Storage]:
    """The storage of each parameter. With `auto`, what a GGUF file holds is kept as it is, value for value."""
    most = storage(dtype, source.stored)
    return {p.key: _storage_of(source, p, dtype, most) for p in (*source.params, *source.mtp_params)}


def gguf_storages(config: ModelConfig, wanted: str) -> dict[str, native.Storage]:
    """The storage of each parameter of a GGUF file that was converted to `wanted`, for a model of bfloat16 weights."""
    return {param.key: _converted(config, param, wanted) for param in param_specs(config)}


def _converted(config: ModelConfig, param: Param, wanted: str) -> native.Storage:
    name, _ = gguf_name(param.sources[0])
    if param.kind == "kv_b" and config.mla is not None:
        keys, values = (
            _kept_of(gguf_type(TensorStream(name, (1, width), "bf16", _unread), wanted, head_name(config)))
            for width in (config.mla.nope, config.mla.kv_lora)
        )
        return _kept_halves(keys, values)
    stream = TensorStream(name, param.shape, "bf16", _unread)
    return _kept_of(gguf_type(stream, wanted, head_name(config)))


def _unread(begin: int, end: int) -> Rows:
    raise AssertionError("there is only the shape")


def is_quantised(params: Iterable[Param], kept: Mapping[str, str]) -> bool:
    """Whether most weights of matrices are kept quantised; routers, which never are, do not count."""
    matrices = [param for param in params if param.kind not in _EXACT]
    quantised = sum(param.size for param in matrices if kept[param.key] not in native.FLOATS)
    return 2 * quantised > sum(param.size for param in matrices)


def _storage_of(source: Source, param: Param, dtype: DType, most: native.Storage) -> native.Storage:
    if param.kind in _EXACT:
        return "float32"
    if dtype == "auto" and param.kind == "kv_b" and (halves := source.kv_blocks(param)) is not None:
        keys, values = (_kept_of(kind) for kind, _ in halves)
        return _kept_halves(keys, values)
    stored = source.source_dtype(param) if dtype == "auto" else None
    if stored is not None:
        return _kept_of(stored)
    if dtype == "auto" and source.is_blocks:
        return "float32"  # exact, where a parameter has several types
    return cast(native.Storage, kept_as(param, most))


def _kept_halves(keys: native.Storage, values: native.Storage) -> native.Storage:
    """How MLA's kv_b is kept, whose halves a file may have in two types."""
    return values if keys == values or values not in native.FLOATS else "float32"


def _kept_of(ggml_type: str) -> native.Storage:
    return cast(native.Storage, OF_GGML.get(ggml_type, ggml_type))


class Packed(NamedTuple):
    """Parameters by key: handles of the native backend, and what they hold."""

    handles: dict[str, Any]
    contents: Contents


def pack_all(
    source: Source,
    params: Sequence[Param],
    kept: Mapping[str, native.Storage],
    importance: Importance | None = None,
    progress: Progress = lambda done, total: None,
) -> Packed:
    """Pack `params` one after the other. Contents are hashed beside it, or taken from a packed file's header."""
    done, total = 0, sum(param.size for param in params)
    handles: dict[str, Any] = {}
    hashed: dict[str, list[tuple[str, Callable[[], str]]]] = {}
    with closing(Digests()) as digests:
        for param in params:
            handle = handles[param.key] = pack(source, param, kept[param.key], importance)
            source.release()
            progress(done := done + param.size, total)
            parts = parts_of(handle)
            recorded = source.digests(param) if _is_ready(source, param, kept[param.key], importance) else ()
            found = list(map(_known, recorded)) or [digests.start(raw) for _, raw in parts]
            hashed[param.key] = [(name, digest) for (name, _), digest in zip(parts, found, strict=True)]
        contents = {key: tuple((name, digest()) for name, digest in parts) for key, parts in hashed.items()}
    return Packed(handles, contents)


def _known(digest: str) -> Callable[[], str]:
    return lambda: digest


def _is_ready(source: Source, param: Param, kept: native.Storage, importance: Importance | None) -> bool:
    return kept == source.source_dtype(param) and not (importance and kept == "int4")


def pack(source: Source, param: Param, kept: native.Storage, importance: Importance | None = None) -> Any:
    """One parameter as a handle of the native backend: mapped where the file is packed so, else filled by tensor."""
    if _is_ready(source, param, kept, importance):
        ready = source.packed(param)
        if ready is not None:
            return ready
    if param.kind == "vector":
        return native.vector(source.whole(param))
    if param.kind == "kv_b":
        return _pack_kv_b(source, param, kept, importance)
    *count, rows, cols = param.shape
    make = native.gate_up_matrix if param.key.endswith("gate_up") else native.Matrix
    matrix = make(count[0] if count else 1, rows, cols, kept)
    stored = source.source_dtype(param)
    if kept not in native.FLOATS and stored is not None and _kept_of(stored) == kept:
        for name, (row, blocks) in zip(param.sources, source.block_pieces(param), strict=True):
            with _named(source, name):
                matrix.fill_blocks(row // rows, row % rows, blocks)
        return matrix
    weight = importance.get(param.key) if importance and kept == "int4" else None
    for number, (row, values) in enumerate(source.pieces(param), 1):
        used = weight if weight is None or not count else weight[row // rows]
        _fill(matrix, row // rows, row % rows, values, used)
        del values  # before the next one is read
        if number % RELEASE_EVERY == 0:
            source.release()
    return matrix


def _fill_heads(matrix: native.Matrix, ggml_type: str, rows: NDArray[np.uint8]) -> None:
    """Rows of all heads as a file has them, floats or blocks."""
    for head, one in enumerate(rows.reshape(matrix.count, matrix.rows, -1)):
        if matrix.storage in native.FLOATS:
            matrix.fill(head, 0, BY_NAME[ggml_type].float32(one))
        else:
            matrix.fill_blocks(head, 0, one)


@contextmanager
def _named(source: Source, name: str) -> Iterator[None]:
    """What the backend refuses while one tensor's blocks are packed is an error of the file."""
    try:
        yield
    except ValueError as e:
        raise CheckpointError(f"{source.path}: tensor {gguf_name(name)[0]}: {e}") from None


def _fill(
    matrix: native.Matrix,
    index: int,
    row: int,
    values: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> None:
    if matrix.storage == "int4":
        matrix.fill_coded(index, row, *quantise_int4(values, importance))
    else:
        matrix.fill(index, row, np.ascontiguousarray(values))


def _pack_kv_b(source: Source, param: Param, kept: native.Storage, importance: Importance | None) -> native.KvB:
    """kv_b, split per head. A file's blocks are kept; of a kv_b in one piece, those of the values, for keys are
    transposed, and regrouping their blocks would change them: they become float32."""
    shape = source.config.attention
    assert isinstance(shape, MlaShape)
    sizes = shape.heads, shape.nope, shape.value, shape.latent
    if (halves := source.kv_blocks(param)) is not None:
        k_kept, v_kept = (_kept_of(kind) for kind, _ in halves)
        if kept == v_kept and (kept not in native.FLOATS or k_kept == v_kept):
            packed = native.KvB(*sizes, k_kept, v_kept)
            for part, matrix, half in zip("kv", (packed.k_b, packed.v_b), halves, strict=True):
                with _named(source, param.sources[0].replace("kv_b_proj", f"{part}_b_proj")):
                    _fill_heads(matrix, *half)
            return packed
    stored = source.source_dtype(param)
    if halves is None and stored is not None and kept not in native.FLOATS and _kept_of(stored) == kept:
        packed = native.KvB(*sizes, "float32", kept)
        [(_, rows)] = source.block_pieces(param)
        for head, blocks in enumerate(rows.reshape(shape.heads, shape.nope + shape.value, -1)):
            with _named(source, param.sources[0]):
                packed.v_b.fill_blocks(head, 0, np.ascontiguousarray(blocks[shape.nope :]))
                packed.k_b.fill(head, 0, np.ascontiguousarray(BY_NAME[stored].float32(blocks[: shape.nope]).T))
        return packed
    packed = native.KvB(*sizes, kept)
    known = importance is not None and kept == "int4" and {param.key, param.key + QUERY} <= importance.keys()
    weights = importance if known else None  # modules have none
    for head, w in enumerate(_heads(source.pieces(param), shape.nope + shape.value)):
        keys, values = (weights[param.key + QUERY][head], weights[param.key]) if weights else (None, None)
        _fill(packed.k_b, head, 0, w[: shape.nope].T, keys)
        _fill(packed.v_b, head, 0, w[shape.nope :], values)
    return packed


def _heads(pieces: Iterator[tuple[int, NDArray[np.float32]]], height: int) -> Iterator[NDArray[np.float32]]:
    """The rows of one head after the other, however the pieces were cut."""
    rest: NDArray[np.float32] | None = None
    for _, rows in pieces:
        rest = rows if rest is None or not len(rest) else np.concatenate([rest, rows])
        while len(rest) >= height:
            yield np.ascontiguousarray(rest[:height])
            rest = rest[height:]
