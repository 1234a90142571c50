"""`deepwell calibrate`: measure which input columns of a model are used, for a better quantisation."""

from __future__ import annotations

from deepwell.cli.extras import needing
from deepwell.cli.hub import located
from deepwell.cli.waiting import Wait
from deepwell.options import CalibrateOptions
from deepwell.weights import embedded_path


def run(options: CalibrateOptions) -> int:
    with needing("train", "calibrating"):
        from deepwell.train.calibrate import calibrate
    model = located(options.model) or embedded_path()
    with Wait("reading the text through the model"):
        used = calibrate(model, options.text, options.out, options.tokens)
    print(f"{options.out}: importances from {used:,} tokens of {options.text}")
    return 0
