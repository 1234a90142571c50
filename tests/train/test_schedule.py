"""Rates as functions of the step, against DeepSeek's recipe."""

from __future__ import annotations

import pytest

from deepwell.train.config import TrainConfig
from deepwell.train.schedule import bias_speed, learning_rate, mtp_weight

CONFIG = TrainConfig(tokens=1000 * 4096, context=1024, batch_rows=4, learning_rate=1.0, warmup=10, mtp_from=0.5)


def test_steps_follow_from_tokens() -> None:
    assert CONFIG.steps == 1000


def test_multi_step_rate_warms_up_then_falls_at_80_and_90_percent() -> None:
    assert [learning_rate(CONFIG, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    rates = {step: learning_rate(CONFIG, step) for step in (10, 799, 800, 899, 900, 999)}
    assert rates == {10: 1.0, 799: 1.0, 800: 0.316, 899: 0.316, 900: 0.1, 999: 0.1}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_other_schedules_end_near_a_tenth_and_never_rise(schedule: str) -> None:
    config = TrainConfig(tokens=1000 * 4096, learning_rate=1.0, warmup=10, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] == pytest.approx(0.1, abs=5e-3)


def test_bias_stands_still_and_mtp_weighs_a_third_in_the_last_tenth() -> None:
    assert [bias_speed(CONFIG, step) for step in (0, 899, 900)] == [1e-3, 1e-3, 0.0]
    assert [mtp_weight(CONFIG, step) for step in (499, 500, 899)] == [0.0, 0.3, 0.3]
    assert mtp_weight(CONFIG, 900) == pytest.approx(0.1)
