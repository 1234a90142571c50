"""Answers as meaning: a state machine per prompt format that tells reasoning, content and tool calls apart."""

from deepwell.chat.reading.base import (
    CallArguments,
    CallBegin,
    Content,
    Piece,
    PlainReader,
    Reader,
    Reasoning,
    Thoughts,
)

__all__ = ["CallArguments", "CallBegin", "Content", "Piece", "PlainReader", "Reader", "Reasoning", "Thoughts"]
