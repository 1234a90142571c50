"""config.json is untrusted: whatever is changed in it, a model loads and runs, or an error says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import CheckpointError, ConfigError, DeepwellError
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights.checkpoint import Checkpoint

NAMES = ("v3", "v2-lite", "llama-llama3", "qwen3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in made.items():
        seeded.save(name, folder)
    return made


@pytest.fixture(scope="module")
def raws(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {name: json.loads((folder / "config.json").read_text()) for name, folder in folders.items()}


NUMBERS = st.one_of(
    st.integers(-2, 700),
    st.sampled_from([0, 1, 2**16, 2**24, 2**24 + 1, 2**31, 2**63, 2**70, 0.5, 1e-30, 1e-6, 1e9, 1e30, -1.0, 3.0]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
    st.sampled_from(["yarn", "linear", "llama3", "default", "greedy", "noaux_tc", "softmax", "sigmoid", "llama"]),
)


def run(folder: Path) -> None:
    """Load the model and compute three tokens."""
    checkpoint = Checkpoint(folder)
    runner = NativeRunner(checkpoint, "float32", blocks=1)
    rows = np.arange(3, dtype=np.int32)
    logits = runner.run(Batch(rows, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows))
    assert logits.shape == (3, checkpoint.config.vocab)
    assert np.isfinite(logits).all()


@settings(max_examples=500, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_changed_values(
    folders: dict[str, Path], raws: dict[str, dict[str, Any]], name: str, data: st.DataObject
) -> None:
    folder, raw = folders[name], json.loads(json.dumps(raws[name]))
    rope = raw.setdefault("rope_parameters", {})
    places = [(raw, key) for key in raw] + [(rope, key) for key in (*rope, "attn_factor", "attention_factor")]
    for place, key in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2), label="keys"):
        if data.draw(st.integers(0, 9)) == 0:
            place.pop(key, None)
        else:
            place[key] = data.draw(VALUES, label=key)
    (folder / "config.json").write_text(json.dumps(raw))
    try:
        run(folder)
    except DeepwellError as error:
        told = str(error)
    else:
        return
    assert "config.json" in told or str(folder) in told


@settings(max_examples=200, deadline=None)
@given(content=st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | VALUES | st.binary(max_size=30))
def test_any_content(folders: dict[str, Path], content: Any) -> None:
    file = folders["v3"] / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises((CheckpointError, ConfigError), match=r"config\.json"):
        run(folders["v3"])
