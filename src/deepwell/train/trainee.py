"""The model being trained: parameters from a seed, the losses, and the router biases.

Names carry shapes: B rows, S positions, T = B·S tokens, E experts, A chosen experts.
"""

from __future__ import annotations

import hashlib

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from deepwell.model.config import ModelConfig
from deepwell.model.decoder import Decoder
from deepwell.model.params import Param, param_specs
from deepwell.ops.torch_ops import RouterLoad, TorchOps

IGNORED = -100


class Losses(msgspec.Struct, frozen=True):
    """Sums over the tokens of a microbatch, in nats, with gradients; `loads` are those of its MoE layers."""

    next_token: Tensor
    mtp: Tensor | None
    balance: Tensor
    loads: list[RouterLoad]


class Trainee:
    """`weights` by key, all float32; `biases` are the router biases among them, moved by load and not by gradient."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self.specs = {spec.key: spec for spec in param_specs(config, mtp=True)}
        self.weights = {key: _initial(spec, config.layers, seed) for key, spec in self.specs.items()}
        self.biases = {key: w for key, w in self.weights.items() if key.endswith("router_bias")}
        self.trained = {key: w.requires_grad_() for key, w in self.weights.items() if key not in self.biases}
        self.decoder = Decoder(config, self.weights)

    def losses(self, rows: Tensor, targets: Tensor, *, mtp: bool) -> Losses:
        """Losses of rows_B(S+1) against targets_BS (IGNORED where nothing is to be predicted)."""
        ops = TorchOps(rows[:, :-1])
        x = self.decoder.hidden(ops)
        next_token = _cross_entropy(self.decoder.logits(ops, x), targets)
        ahead = None
        if mtp:
            following = TorchOps(rows[:, 1:]).embed(self.weights["embed"])
            _, logits = self.decoder.predict_ahead(ops, x, following)
            ahead = _cross_entropy(logits, mtp_targets(targets))
        return Losses(next_token, ahead, self._balance(ops), ops.loads)

    def move_biases(self, counts: dict[int, Tensor], speed: float) -> None:
        """Raise the bias of each expert that got less than its share of tokens, lower the others' (sign step)."""
        for layer, count_E in counts.items():
            share_E = count_E.float()
            self.biases[self.bias_key(layer)].add_(torch.sign(share_E.mean() - share_E), alpha=speed)

    def bias_key(self, layer: int) -> str:
        depth = layer - self.config.layers
        return f"layers.{layer}.ffn.router_bias" if depth < 0 else f"mtp.{depth}.layer.ffn.router_bias"

    def _balance(self, ops: TorchOps) -> Tensor:
        """Sequence-wise balance loss, Σ_e f_e·P_e averaged over rows and summed over layers (V3 report, eq. 17-20)."""
        total = torch.zeros(())
        for load in ops.loads:
            experts, chosen = load.score_TE.shape[1], load.chosen_TA.shape[1]
            share_TE = load.score_TE / (load.score_TE.sum(-1, keepdim=True) + 1e-20)
            picked_TE = torch.zeros_like(load.score_TE).scatter_(1, load.chosen_TA, 1.0)
            share_BE, often_BE = (x.view(ops.batch, ops.length, experts).mean(1) for x in (share_TE, picked_TE))
            total = total + (often_BE * share_BE).sum(-1).mean() * (experts / chosen)
        return total


def mtp_targets(targets: Tensor) -> Tensor:
    """The targets one place further: where either of the two next tokens is ignored, so is the further one."""
    shifted = torch.full_like(targets, IGNORED)
    shifted[:, :-1] = targets[:, 1:]
    return shifted.masked_fill(targets == IGNORED, IGNORED)


def _cross_entropy(logits_TV: Tensor, targets_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_TV.float(), targets_BS.reshape(-1), ignore_index=IGNORED, reduction="sum")


def _initial(spec: Param, layers: int, seed: int) -> Tensor:
    """Norms are 1 and biases 0. Matrices are normal with deviation 0.5/sqrt(inputs), those that write to the residual
    stream divided by sqrt(2·layers). Embedding rows have deviation 1, so that layers add to them and do not drown them;
    the head 0.02, so that the first guess is uniform."""
    if spec.kind == "vector":
        return torch.zeros(spec.shape) if spec.key.endswith("bias") else torch.ones(spec.shape)
    own_seed = hashlib.sha256(f"{seed}:{spec.key}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(own_seed))
    deviation: float = {"embed": 1.0, "head": 0.02}.get(spec.key, 0.5 * spec.shape[-1] ** -0.5)
    if spec.key.endswith((".o", ".down")):
        deviation /= (2 * layers) ** 0.5
    return torch.randn(spec.shape, generator=generator) * deviation
