"""How a matrix may be kept: the one list of storages in Python. native/storage.h has the one in C++, with the layouts.

A new storage is a line in each, and how its blocks are read (native/blocks.cpp, weights/gguf/ggml_types.py); all that
names, counts or allows storages derives from here. tests/ops/test_storages.py holds the two lists against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Storage = Literal[
    "float32", "bfloat16", "float16", "int8", "int4", "q4_1", "q5_0", "q5_1",
    "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
]  # fmt: skip


class StorageFacts(msgspec.Struct, frozen=True):
    """`bits` per weight as the native backend keeps it, scales included; `ggml` is the type that holds its values."""

    bits: float
    ggml: str

    @property
    def quantised(self) -> bool:
        return self.bits < 16


STORAGES: Mapping[Storage, StorageFacts] = {
    "float32": StorageFacts(32.0, "f32"),
    "bfloat16": StorageFacts(16.0, "bf16"),
    "float16": StorageFacts(16.0, "f16"),
    "int8": StorageFacts(8.5, "q8_0"),
    "int4": StorageFacts(4.5, "q4_0"),
    "q4_1": StorageFacts(5.0, "q4_1"),
    "q5_0": StorageFacts(5.5, "q5_0"),
    "q5_1": StorageFacts(6.0, "q5_1"),
    "q2_k": StorageFacts(3.125, "q2_k"),
    "q3_k": StorageFacts(3.625, "q3_k"),
    "q4_k": StorageFacts(4.625, "q4_k"),
    "q5_k": StorageFacts(5.625, "q5_k"),
    "q6_k": StorageFacts(6.625, "q6_k"),
    "iq4_nl": StorageFacts(4.5, "iq4_nl"),
    "iq4_xs": StorageFacts(4.375, "iq4_xs"),
    "mxfp4": StorageFacts(4.5, "mxfp4"),
}
FLOATS: tuple[Storage, ...] = tuple(name for name, facts in STORAGES.items() if not facts.quantised)
OF_GGML: Mapping[str, Storage] = {facts.ggml: name for name, facts in STORAGES.items()}
"""Storages by the ggml type of the same values."""
GGML_FLOATS: Mapping[str, Storage] = {STORAGES[name].ggml: name for name in FLOATS}
"""Floats by their names in ggml."""
BITS: Mapping[str, float] = {facts.ggml: facts.bits for facts in STORAGES.values()} | {
    name: facts.bits for name, facts in STORAGES.items()
}
"""Bits per weight by storage, or by the ggml type that a file calls it."""
