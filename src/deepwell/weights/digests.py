"""BLAKE3 of packed bytes, on threads beside those that pack or write: the content that identities are made of."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from deepwell.ops import native

_PIECE = 4 << 20
"""Bytes that one thread hashes at a time. Digests depend on it: raise packed.VERSION with it."""


class Digests:
    """Hashes arrays in the background, as many pieces at once as the kernels have threads.

    An array's digest is BLAKE3 over the BLAKE3 of its pieces of 4 MiB, so that the largest matrix keeps every core
    busy.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(native.threads(), thread_name_prefix="digests")

    def start(self, raw: NDArray[np.uint8]) -> Callable[[], str]:
        """Begin to hash `raw`, which must not change meanwhile; the result waits for its 64 hexadecimal digits."""
        pieces = [self._pool.submit(_hashed, raw[at : at + _PIECE]) for at in range(0, len(raw), _PIECE)]
        return lambda: blake3(b"".join(piece.result() for piece in pieces)).hexdigest()

    def close(self) -> None:
        """Let go of the threads; what has not begun yet is never hashed."""
        self._pool.shutdown(cancel_futures=True)


def _hashed(raw: NDArray[np.uint8]) -> bytes:
    return blake3(raw.data).digest()
