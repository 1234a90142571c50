"""`deepwell calibrate`: measure which input columns of a model are used, for a better quantisation."""

from __future__ import annotations

from deepwell.cli.hub import located
from deepwell.errors import DeepwellError
from deepwell.options import CalibrateOptions
from deepwell.weights import embedded_path


def run(options: CalibrateOptions) -> int:
    try:
        from deepwell.train.calibrate import calibrate
    except ModuleNotFoundError as error:
        raise DeepwellError(
            f"calibrating needs {error.name}, which is not installed: pip install 'deepwell[train]'"
        ) from None
    used = calibrate(located(options.model) or embedded_path(), options.text, options.out, options.tokens)
    print(f"{options.out}: importances from {used:,} tokens of {options.text}")
    return 0
