"""The published checkpoint is open: plain transformers loads it and says what the engine says, token for token."""

import subprocess
import sys
from pathlib import Path

from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_light.py"


def test_first_light() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("--- same, ") == 3


def test_embedded_model_is_small_and_whole() -> None:
    assert sum(file.stat().st_size for file in embedded_path().iterdir()) < 10_000_000
    checkpoint = Checkpoint(embedded_path())
    assert checkpoint.stored == "bfloat16"
    assert checkpoint.config.mtp_layers == 1
    assert any(name.startswith(f"model.layers.{checkpoint.config.layers}.") for name in checkpoint.tensors)
