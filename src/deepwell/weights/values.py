"""What values must be as they are read, whichever file they come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether there is no NaN and no infinity, in a third of the time of asking each and without memory for a mask."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        # a sum of squares carries every one of them along; large numbers overflow it too, so then each is asked
        return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())
