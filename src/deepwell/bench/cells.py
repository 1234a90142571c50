"""What is measured: a cell is one number, a plan lists the cells of a benchmark."""

from __future__ import annotations

from typing import Literal

import msgspec

from deepwell.options import Measure

SHORT_PROMPT = 64
"""Tokens of the prompts whose answers are timed: one block, so that one and many streams decode at equal depth."""

READING_STEPS = SHORT_PROMPT + 2
"""Steps in which the first of many streams may already answer while prompts of the others are still read, at most."""


class Cell(msgspec.Struct, frozen=True):
    """One number: the measure, and its size.

    load: seconds until a first token (size 0). prefill: tokens/s of reading a prompt of `size` tokens. decode: tokens/s
    of one stream (size 1). streams: tokens/s of `size` streams together. depth: tokens/s of one stream after `size`
    tokens. memory: bytes resident at most (size 0).
    """

    measure: Measure | Literal["memory"]
    size: int

    @property
    def unit(self) -> str:
        return {"load": "s", "memory": "bytes"}.get(self.measure, "tokens/s")

    @property
    def more_is_better(self) -> bool:
        return self.measure not in ("load", "memory")

    @property
    def title(self) -> str:
        """For tables and pictures."""
        match self.measure:
            case "load":
                return "load to first token"
            case "prefill":
                return f"prefill, {self.size:,} tokens"
            case "decode":
                return "decode, 1 stream"
            case "streams":
                return f"decode, {self.size:,} stream" + ("s" if self.size > 1 else " in a batch")
            case "depth":
                return f"decode at depth {self.size:,}"
            case "memory":
                return "resident memory"


class Plan(msgspec.Struct, frozen=True):
    """Which measures, at which sizes. `decode_tokens` are generated wherever decoding is timed."""

    measures: tuple[Measure, ...]
    prompt_tokens: tuple[int, ...]
    streams: tuple[int, ...]
    depths: tuple[int, ...]
    decode_tokens: int

    def cells(self) -> list[Cell]:
        """In a fixed order, each once, however the measures were listed."""
        sizes: dict[Measure, tuple[int, ...]] = {
            "load": (0,),
            "prefill": self.prompt_tokens,
            "decode": (1,),
            "streams": self.streams,
            "depth": self.depths,
        }
        return [Cell(name, size) for name in sizes if name in self.measures for size in dict.fromkeys(sizes[name])]

    def groups(self) -> list[tuple[Cell, ...]]:
        """Cells that one process of an engine measures, so that engines can take turns between them."""
        together = {"load": 0, "prefill": 1, "decode": 1, "streams": 2, "depth": 3}
        cells = self.cells()
        return [group for number in range(4) if (group := tuple(c for c in cells if together[c.measure] == number))]

    def context(self) -> int:
        """Tokens that the longest sequence holds."""
        needs = {
            "prefill": max(self.prompt_tokens, default=0) + 1,
            "decode": SHORT_PROMPT + self.decode_tokens + 1,
            "streams": SHORT_PROMPT + READING_STEPS + self.decode_tokens,
            "depth": max(self.depths, default=0) + self.decode_tokens + 1,
        }
        return max((need for name, need in needs.items() if name in self.measures), default=SHORT_PROMPT)
