"""GGUF files whose metadata have the wrong type, one key at a time: a sentence names the key, or nobody reads it.

DEEPWELL_SEED chooses the values of the second test, which changes several keys at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import rounds

from deepwell.errors import CheckpointError, ConfigError, DeepwellError
from deepwell.loading.convert import prepare
from deepwell.weights.gguf import checkpoint
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.folder import folder_files
from deepwell.weights.gguf.keys import TokenizerKey
from deepwell.weights.gguf.reader import GgufFile

ROUNDS = 150
VALUES: dict[str, Any] = {
    "a truth": True,
    "a number": 7,
    "a negative number": -3,
    "a large number": 2**63,
    "a fraction": 0.5,
    "no number": float("nan"),
    "infinity": float("inf"),
    "a text": "text",
    "an empty text": "",
    "a long text": "x" * 100_000,
    "no texts": [],
    "texts": ["a", "b"],
    "truths": [True, False],
    "arrays": [np.array([1, 2]), ["a"]],
    "numbers": np.array([1, 2, 3], np.int32),
    "one number": np.array([1], np.uint8),
    "no numbers": np.array([], np.int64),
    "fractions": np.array([0.5, np.nan], np.float32),
}
UNREAD = {
    "deepseek2.attention.head_count_kv",
    "deepseek2.attention.key_length",
    "deepseek2.attention.value_length",
    "deepseek2.vocab_size",
    "tokenizer.ggml.add_eos_token",
}
"""Keys of the file that decide nothing here. What only advises or is shown (general.) says nothing if it is odd."""

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of DeepSeek-V3's kind, with every key that Deepwell reads."""
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    prepare(model_folder, "gguf").write(out, lambda done, total: None)
    return out


@pytest.fixture
def load(file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Loads the model with its metadata changed, as everything does that opens one. Raises DeepwellError."""

    whole = GgufFile(file)

    def act(change: Change) -> None:
        def changed(path: Path) -> GgufFile:
            opened = copy(whole)
            opened.metadata = dict(whole.metadata)
            change(opened.metadata)
            return opened

        monkeypatch.setattr(checkpoint, "GgufFile", changed)
        source = GgufCheckpoint(file)
        source.tokenizer()
        str(source.advice)
        folder_files(source, "float32")
        prepare(file, "gguf", "q8_0")

    return act


def kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size == 1:
        return "number"  # a value per layer, which may stand for all
    if isinstance(value, np.ndarray):
        return "numbers"
    if isinstance(value, list):
        return f"list of {kind_of(value[0])}" if value else "list"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def all_keys(file: Path) -> dict[str, Any]:
    extra = {TokenizerKey.PADDING: 0, TokenizerKey.TEMPLATE: "{{ a }}", TokenizerKey.TOOL_TEMPLATE: "{{ b }}"}
    extra |= {TokenizerKey.EOT: 1, TokenizerKey.UNKNOWN: 0, TokenizerKey.SEPARATOR: 0, TokenizerKey.ADD_BOS: True}
    return GgufFile(file).metadata | extra | {TokenizerKey.GAP_ENDS[0]: 1, "general.sampling.temp": 0.6}


def test_every_key_with_every_other_type(file: Path, load: Callable[[Change], None]) -> None:
    keys = all_keys(file)
    load(lambda metadata: metadata.update(keys))
    silent, said = [], {}
    for key, right in keys.items():
        for what, value in VALUES.items():
            if kind_of(value) == kind_of(right):
                continue
            try:
                load(lambda metadata, key=key, value=value: metadata.update(keys | {key: value}))  # type: ignore[misc]
            except (CheckpointError, ConfigError) as error:
                said[key, what] = str(error)
            else:
                silent.append((key, what))
    assert [(*at, text[:500]) for at, text in said.items() if at[0] not in text or len(text) > 1000] == []
    unread = {key for key, _ in silent if not key.startswith("general.")}
    assert sorted(unread) == sorted(UNREAD)


def test_several_keys_with_any_value_are_a_sentence(file: Path, load: Callable[[Change], None]) -> None:
    keys = all_keys(file)

    def change(metadata: dict[str, Any], chance: random.Random) -> None:
        metadata |= keys
        for key in chance.sample(sorted(keys), chance.randint(1, 4)):
            if chance.random() < 0.2:
                metadata.pop(key, None)
            else:
                metadata[key] = chance.choice([*VALUES.values(), *keys.values()])

    for chance in rounds(ROUNDS):
        with suppress(DeepwellError):
            load(lambda metadata, chance=chance: change(metadata, chance))  # type: ignore[misc]
