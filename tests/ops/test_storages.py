"""A storage is listed once in Python and once in C++: the two agree, and what names storages elsewhere derives."""

from __future__ import annotations

from typing import get_args

import pytest

from deepwell import _native
from deepwell.loading.convert import ALLOWED
from deepwell.loading.fit import PRECISIONS
from deepwell.ops import native
from deepwell.ops.storages import BITS, FLOATS, OF_GGML, STORAGES, Storage
from deepwell.options import ConvertDtype, Dtype
from deepwell.weights.encode import ENCODERS
from deepwell.weights.gguf.ggml_types import BY_NAME


def test_python_and_cpp_list_the_same_storages() -> None:
    told = _native.storages()
    assert [name for name, *_ in told] == list(STORAGES) == list(get_args(Storage))
    assert [bits for _, bits, *_ in told] == [facts.bits for facts in STORAGES.values()]
    with pytest.raises(ValueError, match="storage 'int3' is unknown; allowed: " + ", ".join(STORAGES)):
        native.Matrix(1, 16, 32, "int3")  # type: ignore[arg-type]


def test_every_storage_holds_the_values_of_one_ggml_type() -> None:
    assert OF_GGML.keys() == BY_NAME.keys()
    assert len(OF_GGML) == len(STORAGES)
    for name, _, cols, size in _native.storages():
        kind = BY_NAME[STORAGES[name].ggml]  # type: ignore[index]
        if name not in FLOATS:
            assert (cols, size) == (kind.width, kind.layout.itemsize)


def test_what_may_be_asked_for_are_storages() -> None:
    asked = set(get_args(Dtype)) - {"auto"}
    assert asked | set(PRECISIONS) <= STORAGES.keys()
    assert set(get_args(ConvertDtype)) == {dtype for target in ALLOWED.values() for dtype in target}
    assert ENCODERS.keys() <= OF_GGML.keys()
    assert BITS.keys() == STORAGES.keys() | OF_GGML.keys()
