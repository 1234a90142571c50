"""Importances as llama-imatrix writes them: a GGUF file with two float32 tensors for each matrix that it saw.

`NAME.in_sum2` (P, K) holds the sums of squares of the K input columns, for each of the P matrices behind one another in
the tensor NAME (experts, heads; else one), `NAME.counts` (P, 1) how many rows each of them has seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.weights.gguf.reader import GgufFile, GgufTensor

F32 = NDArray[np.float32]
SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(file: Path) -> dict[str, F32]:
    """Mean squares (P, K) by the tensor they were measured for; a matrix that saw no row takes the mean of the others.

    CheckpointError if the file is broken or no such file.
    """
    tensors = GgufFile(file).tensors
    if not any(name.endswith(SUMS) for name in tensors):
        raise CheckpointError(
            f"{file}: holds no tensor named …{SUMS}; importances are what `deepwell calibrate` writes"
        )
    return {
        name.removesuffix(SUMS): _mean_squares(file, tensor, tensors.get(name.removesuffix(SUMS) + COUNTS))
        for name, tensor in tensors.items()
        if name.endswith(SUMS)
    }


def _mean_squares(file: Path, sums: GgufTensor, counts: GgufTensor | None) -> F32:
    sums_PK = np.atleast_2d(sums.float32()).astype(np.float64)
    counts_P = np.zeros(0) if counts is None else counts.float32().reshape(-1).astype(np.float64)
    if sums_PK.ndim != 2 or counts_P.shape != sums_PK.shape[:1]:
        raise CheckpointError(f"{file}: tensor {sums.name} has shape {sums.shape} and {len(counts_P)} counts beside it")
    if (sums_PK < 0).any() or (counts_P < 0).any() or not counts_P.any():
        raise CheckpointError(f"{file}: tensor {sums.name} holds sums of squares or counts below 0, or of no rows")
    overall_K = sums_PK.sum(0) / counts_P.sum()
    seen_P1 = counts_P[:, None] > 0
    means_PK: F32 = np.where(seen_P1, sums_PK / np.maximum(counts_P[:, None], 1), overall_K).astype(np.float32)
    return means_PK
