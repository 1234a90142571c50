"""What a loaded model is, by content: models of one identity give the same keys, values and logits, bit for bit.

An `Identity` is made of the config, of the packed bytes of every loaded parameter with their storages, of the cache's
layers and of the kernels' version. Packed bytes are what the kernels read, so that whatever changes them changes the
identity: any byte of the weights, `--dtype`, `--importance`. What does not reach them does not: the folder, the time,
the number of shards, the instruction set, and whether the model came from its source or from a packed copy.

What is trusted: bytes packed in this process are hashed in this process, while the next ones are packed. Of a packed
file the digests that its writer recorded are taken, so that gigabytes need not be hashed at every start; the bytes are
compared with a 64-bit checksum as they are mapped, which finds damage. So a packed file is believed as far as whoever
wrote it: one made to deceive can carry another model's identity, as it can carry another model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b

import msgspec

from deepwell.model.config import ModelConfig

Contents = Mapping[str, tuple[tuple[str, str], ...]]
"""Of each parameter by key, the storage and BLAKE3 of each part (weights/digests.py)."""


class Identity(msgspec.Struct, frozen=True, dict=True):
    """The name of a model by what it is.

    `cache_widths` are those of all layers, a prediction module's last; `kernels` is `native.KERNELS`.
    """

    config: ModelConfig
    contents: Contents
    cache_widths: tuple[int, ...]
    cache_dtype: str
    kernels: int

    @cached_property
    def digest(self) -> bytes:
        """16 bytes: for block keys, and what `system_fingerprint` is made of."""
        # read back once, so that a whole number where a float is meant (a config.json's 40 for 40.0) is the same model
        canonical = msgspec.json.decode(msgspec.json.encode(self), type=Identity)
        return blake2b(msgspec.json.encode(canonical, order="sorted"), digest_size=16).digest()
