"""Checkpoints in and out: safetensors folders, tokenizer."""

from pathlib import Path

EMBEDDED = Path(__file__).parent.parent / "embedded"
"""The model that comes inside the package, in Hugging Face layout."""


def embedded_path() -> Path:
    """The folder of the embedded model."""
    return EMBEDDED
