"""Operations of the decoder: one contract, several backends."""

from deepwell.ops.base import (
    BLOCK_TOKENS,
    Batch,
    Dispatcher,
    GqaShape,
    IndexShape,
    MlaShape,
    Ops,
    Rotation,
    Routes,
    Routing,
    Sent,
)

__all__ = [
    "BLOCK_TOKENS",
    "Batch",
    "Dispatcher",
    "GqaShape",
    "IndexShape",
    "MlaShape",
    "Ops",
    "Rotation",
    "Routes",
    "Routing",
    "Sent",
]
