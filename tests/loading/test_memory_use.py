"""Loading never needs more memory than the result plus one tensor; converting needs one tensor, whatever the model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import memory_use
import pytest

from fakes import write_tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux counts"),
]
CONSTANT = 32 << 20
"""What the pieces being worked on, and Python's own objects, may take beside."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders bf16 and fp8 of about 320 and 230 MB, and what is converted from them."""
    base = tmp_path_factory.mktemp("large")
    for kind in ("bf16", "fp8"):
        write_tiny_tokenizer(memory_use.write_checkpoint(base / kind, kind))
    yield base
    shutil.rmtree(base)


@pytest.mark.parametrize(
    ("source", "out", "dtype"),
    [
        ("bf16", "bf16.gguf", "auto"),
        ("bf16", "q8.gguf", "q8_0"),
        ("bf16", "q4.gguf", "q4_k"),
        ("bf16.gguf", "from-gguf", "auto"),
        ("q8.gguf", "from-q8", "bfloat16"),
        ("fp8", "from-fp8", "auto"),
        ("fp8", "packed.deepwell", "int8"),
    ],
)
def test_converting(source: str, out: str, dtype: str, models: Path) -> None:
    found = memory_use.measured("convert", models / source, models / out, dtype)
    print(source, out, dtype, found)
    assert found["taken"] < memory_use.LARGEST * 2 + CONSTANT


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("bf16", "auto"),
        ("bf16", "int8"),
        ("bf16", "int4"),
        ("fp8", "auto"),
        ("fp8", "int8"),
        ("bf16.gguf", "auto"),
        ("q8.gguf", "auto"),
        ("q4.gguf", "auto"),
        ("q4.gguf", "int4"),
    ],
)
def test_loading(source: str, dtype: str, models: Path) -> None:
    found = memory_use.measured("load", models / source, dtype)
    print(source, dtype, found)
    assert found["result"] > 80 << 20
    assert found["taken"] < found["result"] + memory_use.LARGEST * 2 + CONSTANT
