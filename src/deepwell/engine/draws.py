"""Random numbers that need no state: number `index` of a stream depends on the seed and the index alone."""

from __future__ import annotations

from hashlib import blake2b


def uniform(seed: int, index: int) -> float:
    """Number `index` of the stream `seed`, in [0, 1): a hash, so it needs no state and no library's generator."""
    digest = blake2b(index.to_bytes(8, "little"), key=seed.to_bytes(16, "little", signed=True), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
