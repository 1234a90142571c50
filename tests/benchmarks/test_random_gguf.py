"""Random GGUF files: their sizes are those of the true models, and the reference library reads them back."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import random_gguf
from random_gguf import SHAPES, Shape, tensors_of

TINY = {
    "experts": Shape(256, 2, 384, 2, 400, 512, 4, 2, 1, 96, 1, 64, 32, 32, 32),
    "plain": Shape(256, 2, 384, 2, 400, 512),
}


@pytest.mark.parametrize(
    ("name", "mix", "billions", "gigabytes", "read"),
    [
        ("v2lite", "q4_0", 15.71, 8.90, 1.445),
        ("v2lite", "q4_k_m", 15.71, 10.36, 1.612),
        ("ds7b", "q4_0", 6.91, 4.00, 3.76),
        ("coder1b", "q4_0", 1.35, 0.775, 0.738),
    ],
)
def test_sizes_of_the_true_models(name: str, mix: str, billions: float, gigabytes: float, read: float) -> None:
    tensors = list(tensors_of(SHAPES[name], mix))
    assert len({t.name for t in tensors}) == len(tensors)
    assert sum(math.prod(t.shape) for t in tensors) / 1e9 == pytest.approx(billions, abs=0.005)
    assert sum(t.nbytes for t in tensors) / 1e9 == pytest.approx(gigabytes, abs=0.02)
    assert sum(t.nbytes * t.active for t in tensors) / 1e9 == pytest.approx(read, abs=0.003)


@pytest.mark.parametrize("mix", ["q4_0", "q4_k_m"])
@pytest.mark.parametrize("name", TINY)
def test_the_reference_library_reads_what_was_written(
    name: str, mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_gguf, "SHAPES", TINY)
    monkeypatch.setattr(random_gguf, "_POOL_BYTES", 1 << 18)
    path = tmp_path / "model.gguf"
    written = {t.name: t for t in random_gguf.write(path, name, mix)}
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == ("deepseek2" if name == "experts" else "llama")
    assert {t.name for t in reader.tensors} == set(written)
    for tensor in reader.tensors:
        assert tuple(map(int, reversed(tensor.shape))) == written[tensor.name].shape
        assert tensor.tensor_type == written[tensor.name].type
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("norm.weight"):
            assert (values == 1).all()
        elif tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            assert np.std(values) == pytest.approx(0.02, rel=0.15)
            assert abs(np.mean(values)) < 0.002


def test_an_interrupted_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(random_gguf, "SHAPES", TINY)
    monkeypatch.setattr(random_gguf._Pools, "pieces", interrupt)
    with pytest.raises(KeyboardInterrupt):
        random_gguf.write(tmp_path / "model.gguf", "plain", "q4_0")
    assert list(tmp_path.iterdir()) == []
