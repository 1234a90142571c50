"""The losses against the formulas of the DeepSeek-V3 report, and the biases against their rule."""

from __future__ import annotations

import math

import pytest
import torch
from toy import toy_shape

from deepwell.ops.torch_ops import RouterLoad, TorchOps
from deepwell.train.trainee import IGNORED, Trainee, mtp_targets

SHAPE = toy_shape()


@pytest.fixture
def trainee() -> Trainee:
    return Trainee(SHAPE, seed=3)


def rows_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(48, SHAPE.vocab, (2, 17), generator=torch.Generator().manual_seed(5))
    targets = rows[:, 1:].clone()
    targets[0, 4], targets[1, 15] = IGNORED, IGNORED
    return rows, targets


def test_weights_follow_from_seed_and_name(trainee: Trainee) -> None:
    same, other = Trainee(SHAPE, seed=3), Trainee(SHAPE, seed=4)
    for key, weight in trainee.weights.items():
        assert torch.equal(weight, same.weights[key])
        if weight.ndim > 1:
            assert not torch.equal(weight, other.weights[key])
    assert set(trainee.biases) == {"layers.1.ffn.router_bias", "mtp.0.layer.ffn.router_bias"}
    assert not set(trainee.biases) & set(trainee.trained)


def test_the_first_guess_is_almost_uniform(trainee: Trainee) -> None:
    rows, targets = rows_and_targets()
    losses = trainee.losses(rows, targets, mtp=True)
    assert float(losses.next_token) / 30 == pytest.approx(math.log(SHAPE.vocab), rel=0.05)
    assert losses.mtp is not None
    assert float(losses.mtp) / 27 == pytest.approx(math.log(SHAPE.vocab), rel=0.05)


def test_further_targets_look_one_place_on_and_skip_what_is_ignored() -> None:
    targets = torch.tensor([[5, 6, IGNORED, 8, 9]])
    assert mtp_targets(targets).tolist() == [[6, IGNORED, IGNORED, 9, IGNORED]]


def test_mtp_sees_only_the_past_and_the_next_token(trainee: Trainee) -> None:
    """Changing token t+2 changes no further prediction of rows up to t; changing t+1 does."""
    rows, _ = rows_and_targets()

    def further_at(changed: int) -> list[bool]:
        other = rows.clone()
        other[:, changed] = 48 + (other[:, changed] - 47) % (SHAPE.vocab - 48)
        logits = []
        for tokens in (rows, other):
            ops = TorchOps(tokens[:, :-1])
            following = TorchOps(tokens[:, 1:]).embed(trainee.weights["embed"])
            logits.append(trainee.decoder.predict_ahead(ops, trainee.decoder.hidden(ops), following)[1])
        differs = (logits[0] != logits[1]).any(-1).view(2, 16)
        return [bool(differs[:, t].any()) for t in range(16)]

    assert further_at(9) == [t >= 8 for t in range(16)]


def test_balance_loss_is_equation_17_of_the_v3_report(trainee: Trainee) -> None:
    rows, targets = rows_and_targets()
    losses = trainee.losses(rows, targets, mtp=False)
    (load,) = losses.loads
    experts, chosen, total = 4, 2, 0.0
    for row in range(2):
        span = slice(row * 16, row * 16 + 16)
        scores, picks = load.score_TE[span].double(), load.chosen_TA[span]
        for expert in range(experts):
            often = experts / (chosen * 16) * int((picks == expert).sum())
            total += often * float((scores[:, expert] / scores.sum(-1)).mean())
    assert float(losses.balance) == pytest.approx(total / 2, rel=1e-5)


def test_even_load_has_balance_loss_1_per_layer(trainee: Trainee) -> None:
    ops = TorchOps(torch.zeros(1, 4, dtype=torch.long))
    chosen = torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]])
    ops.loads.append(RouterLoad(1, torch.bincount(chosen.ravel()), torch.full((4, 4), 0.7), chosen))
    assert float(trainee._balance(ops)) == pytest.approx(1.0)


def test_balance_loss_alone_moves_only_router_and_what_is_below(trainee: Trainee) -> None:
    rows, targets = rows_and_targets()
    trainee.losses(rows, targets, mtp=False).balance.backward()
    router = trainee.weights["layers.1.ffn.router"].grad
    assert router is not None
    assert float(router.abs().sum()) > 0
    assert trainee.weights["layers.1.ffn.experts.down"].grad is None


def test_biases_step_towards_balance(trainee: Trainee) -> None:
    trainee.move_biases({1: torch.tensor([10, 2, 6, 6]), 2: torch.tensor([1, 1, 1, 5])}, 0.001)
    assert trainee.biases["layers.1.ffn.router_bias"].tolist() == pytest.approx([-0.001, 0.001, 0, 0])
    assert trainee.biases["mtp.0.layer.ffn.router_bias"].tolist() == pytest.approx([0.001, 0.001, 0.001, -0.001])


def test_biases_even_out_a_collapsed_router(trainee: Trainee) -> None:
    """With a router that prefers one expert for every token, the bias rule alone spreads the load."""
    with torch.no_grad():
        trainee.weights["layers.1.ffn.router"].mul_(0.2)
    trainee.biases["layers.1.ffn.router_bias"][:] = torch.tensor([0.3, 0.0, 0.0, 0.0])
    rows, targets = rows_and_targets()
    first = trainee.losses(rows, targets, mtp=False).loads[0].count_E
    assert int(first.max()) == 32
    for _ in range(60):
        counts = trainee.losses(rows, targets, mtp=False).loads[0].count_E
        trainee.move_biases({1: counts}, 0.01)
    assert int(counts.max()) < 22
