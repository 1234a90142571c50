"""The choice between ways of guessing: it finds what is faster, notices changes, and is not fooled by pauses."""

from collections.abc import Callable

import numpy as np
import pytest

from deepwell.engine.speculation.controller import TRIAL, WARM_UP, Controller

Speed = Callable[[str, int], tuple[int, float]]
"""(arm, step) to the step's tokens and seconds."""


def run(controller: Controller[str], speed: Speed, steps: int, streams: int = 1, begin: int = 0) -> list[str]:
    chosen = []
    for step in range(begin, begin + steps):
        arm = controller.choose(streams)
        chosen.append(arm)
        controller.learn(streams, arm, *speed(arm, step))
    return chosen


def noisy(rates: dict[str, tuple[float, float]], seed: int = 0) -> Speed:
    """Tokens per step (a mean) and seconds per step of each arm, with noise and a pause of the machine now and then."""
    random = np.random.default_rng(seed)

    def speed(arm: str, step: int) -> tuple[int, float]:
        tokens, seconds = rates[arm]
        pause = 30 * seconds if random.random() < 0.02 else 0.0
        return 1 + int(random.poisson(tokens - 1)), seconds * random.uniform(0.9, 1.1) + pause

    return speed


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({"off": (1, 1.0), "lookup": (2.0, 1.2), "mtp": (1.7, 1.4)}, "lookup"),
        ({"off": (1, 1.0), "lookup": (1.1, 1.2), "mtp": (1.7, 1.3)}, "mtp"),
        ({"off": (1, 1.0), "lookup": (1.3, 1.6), "mtp": (1.7, 2.4)}, "off"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_fastest_wins(rates: dict[str, tuple[float, float]], best: str, seed: int) -> None:
    chosen = run(Controller(["off", "lookup", "mtp"]), noisy(rates, seed), 3000)
    assert chosen[: WARM_UP + TRIAL] == ["off"] * (WARM_UP + TRIAL)
    assert chosen[1000:].count(best) > 0.9 * 2000


def test_each_number_of_streams_learns_for_itself() -> None:
    """Alone a guess is nearly free, in a crowd its row costs as much as a token."""
    controller = Controller(["off", "lookup"])
    alone = noisy({"off": (1, 1.0), "lookup": (1.8, 1.1)})
    crowd = noisy({"off": (32, 8.0), "lookup": (48, 16.0)})
    run(controller, alone, 500, streams=1)
    run(controller, crowd, 500, streams=32)
    assert (controller.best(1), controller.best(32), controller.best(40)) == ("lookup", "off", "off")
    assert controller.best(5) == "off"


def test_a_change_is_noticed() -> None:
    controller = Controller(["off", "lookup"])
    run(controller, noisy({"off": (1, 1.0), "lookup": (3, 1.2)}), 1000)
    assert controller.best(1) == "lookup"
    chosen = run(controller, noisy({"off": (1, 1.0), "lookup": (1, 1.2)}), 3000)
    assert controller.best(1) == "off"
    assert chosen[2000:].count("off") > 900


def test_trials_grow_rare_but_do_not_end() -> None:
    controller = Controller(["off", "lookup", "mtp"])
    chosen = run(controller, noisy({"off": (1, 1.0), "lookup": (1, 1.3), "mtp": (1, 2.0)}), 60_000)
    trials = [arm for arm in chosen if arm != "off"]
    assert len(trials) < 0.01 * len(chosen)
    assert {*chosen[30_000:]} == {"off", "lookup", "mtp"}


def test_one_arm_needs_no_contest() -> None:
    assert {*run(Controller(["mtp"]), lambda arm, step: (1, 0.0), 50)} == {"mtp"}


def test_a_step_of_another_arm_than_the_chosen_is_no_trial() -> None:
    controller = Controller(["off", "lookup"])
    run(controller, lambda arm, step: (1, 1.0), WARM_UP + TRIAL)
    assert controller.choose(1) == "lookup"
    for _ in range(100):
        controller.learn(1, "off", 1, 1.0)
    assert controller.choose(1) == "lookup"
