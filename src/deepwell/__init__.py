"""Deepwell: the open DeepSeek stack, from raw text to weights and from weights to an answer."""

__version__ = "0.1.0"
