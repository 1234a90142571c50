"""Parameters are packed with the importances that were measured for them, each in its own place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.load import load_model
from deepwell.loading.pack import pack, storages
from deepwell.model.params import Param
from deepwell.ops.base import MlaShape
from deepwell.ops.native import Matrix
from deepwell.weights import embedded_path
from deepwell.weights.importance import QUERY, importance_shapes
from deepwell.weights.quantize import dequantise_int4, quantise_int4
from deepwell.weights.source import open_source

SOURCE = open_source(embedded_path())
RANDOM = np.random.default_rng(0)
IMPORTANCE = {
    key: RANDOM.gamma(0.5, size=shape).astype(np.float32) for key, shape in importance_shapes(SOURCE.config).items()
}


@pytest.mark.parametrize("param", SOURCE.params, ids=lambda p: p.key)
def test_every_matrix_is_weighed_by_its_own_importances(param: Param) -> None:
    """The packed values are those of the search, matrix by matrix; what has no importances is rounded plainly."""
    if param.kind in ("vector", "router", "embedding"):
        return
    packed = pack(SOURCE, param, "int4", IMPORTANCE)
    whole = SOURCE.whole(param)
    if param.kind == "kv_b":
        shape = SOURCE.config.attention
        assert isinstance(shape, MlaShape)
        for head, w in enumerate(whole.reshape(shape.heads, -1, shape.latent)):
            keys = np.ascontiguousarray(w[: shape.nope].T)
            wanted = dequantise_int4(*quantise_int4(keys, IMPORTANCE[param.key + QUERY][head]))
            assert np.array_equal(packed.k_b.dequantize(head), wanted)
            wanted = dequantise_int4(*quantise_int4(w[shape.nope :], IMPORTANCE[param.key]))
            assert np.array_equal(packed.v_b.dequantize(head), wanted)
        return
    stack = whole if whole.ndim == 3 else whole[None]
    weights = IMPORTANCE[param.key] if whole.ndim == 3 else IMPORTANCE[param.key][None]
    for index, (w, weight) in enumerate(zip(stack, weights, strict=True)):
        assert np.array_equal(packed.dequantize(index), dequantise_int4(*quantise_int4(w, weight)))


def test_an_importance_file_is_used_by_int4_alone(tmp_path: Path) -> None:
    file = tmp_path / "importance.safetensors"
    save_file(IMPORTANCE, file)
    assert load_model(dtype="int4", importance=file, blocks=2).dtype == "int4"
    assert load_model(dtype="int4", importance=file, blocks=2, speculate="mtp").dtype == "int4", "of it there are none"
    with pytest.raises(ConfigError, match="importance weighs what is quantised to int4, and dtype is int8"):
        load_model(dtype="int8", importance=file)
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"importance\.safetensors"):
        load_model(dtype="int4", importance=file)


def test_routers_and_vectors_are_never_quantised() -> None:
    kept = storages(SOURCE, "int4")
    assert {kept[p.key] for p in SOURCE.params if p.kind in ("router", "vector")} == {"float32"}
    matrices = [p.key for p in SOURCE.params if p.kind not in ("router", "vector")]
    assert {kept[key] for key in matrices if key not in ("embed", "head")} == {"int4"}


def test_embedding_and_head_keep_more_bits_than_int4() -> None:
    kept = storages(SOURCE, "int4")
    assert kept["embed"] == "int8"
    assert kept.get("head", "int8") == "int8"
    assert storages(SOURCE, "int8")["embed"] == "int8"


def test_int4_is_searched() -> None:
    param = next(p for p in SOURCE.params if p.key.endswith("down"))
    whole = SOURCE.whole(param)
    w = whole if whole.ndim == 2 else whole[0]
    rounded = Matrix(1, *w.shape, "int4")
    rounded.fill(0, 0, w)
    made = pack(SOURCE, param, "int4").dequantize(0)
    assert np.array_equal(made, dequantise_int4(*quantise_int4(w)))
    assert np.square(w - made).sum() < 0.98 * np.square(w - rounded.dequantize(0)).sum()
