"""How the KV cache is cut into blocks, and what a block holds as bytes that outlive a process."""

from __future__ import annotations

import msgspec

from deepwell.errors import ConfigError
from deepwell.ops.base import BLOCK_TOKENS


class Page(msgspec.Struct, frozen=True):
    """A block's content and all that says what it means.

    `fingerprint` names the model and the layout of its cache, `widths` are values per token and layer, `dtype` is
    their type. `data` is every layer's page in turn, as the backend lays it out.
    """

    fingerprint: bytes
    widths: tuple[int, ...]
    dtype: str
    data: bytes


class CacheGroup(msgspec.Struct, frozen=True):
    """Layers whose keys and values are kept alike share a block table: `blocks` blocks of `block_tokens` tokens.

    `reach` is how many positions back a token's row may look, its own included; None looks back to the beginning.
    """

    blocks: int
    block_tokens: int = BLOCK_TOKENS
    reach: int | None = None

    def __post_init__(self) -> None:
        for field in ("blocks", "block_tokens", "reach"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"{field} of a cache group is {value}; it must be at least 1")
