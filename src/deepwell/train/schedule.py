"""How rates change over a run. Pure functions of the step."""

from __future__ import annotations

import math

from deepwell.train.config import TrainConfig

LAST = 0.9
"""From this share of the run on, the router bias stands still and the MTP loss weighs a third."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of `step` (from 0): linear warm-up, then the chosen decay (DeepSeek LLM report, section 2.3)."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    return config.learning_rate * _decay(config.schedule, step / config.steps)


def bias_speed(config: TrainConfig, step: int) -> float:
    """Step of the router bias (DeepSeek-V3 report, section 4.2)."""
    return 0.0 if step / config.steps >= LAST else config.bias_speed


def mtp_weight(config: TrainConfig, step: int) -> float:
    """Weight of the multi-token prediction loss; 0 where the module is not trained."""
    share = step / config.steps
    if share < config.mtp_from:
        return 0.0
    return config.mtp_loss / (3.0 if share >= LAST else 1.0)


def _decay(schedule: str, share: float) -> float:
    if schedule == "cosine":
        return 0.55 + 0.45 * math.cos(math.pi * share)
    if schedule == "wsd":
        return 1.0 if share < 0.8 else 1.0 - 0.9 * (share - 0.8) / 0.2
    return 1.0 if share < 0.8 else 0.316 if share < 0.9 else 0.1
