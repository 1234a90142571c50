"""Operations of the decoder: one contract, several backends."""

from deepwell.ops.base import BLOCK_TOKENS, Batch, GqaShape, IndexShape, MlaShape, Ops, Rotation, Routing

__all__ = ["BLOCK_TOKENS", "Batch", "GqaShape", "IndexShape", "MlaShape", "Ops", "Rotation", "Routing"]
