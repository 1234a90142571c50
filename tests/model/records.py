"""What exactness tests measured, a JSON line each in the file that MODEL_ERRORS names: benchmarks/models_page.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "MODEL_ERRORS"


def record(row: str, reference: str, error: float, largest: float) -> None:
    """`row` is a row of docs/models.md; `error` the largest difference of a logit, `largest` the largest logit."""
    if file := os.environ.get(VARIABLE):
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(json.dumps({"row": row, "reference": reference, "error": error, "largest": largest}) + "\n")
