"""The torch backend: plain, differentiable, the reference of the native one and the engine of training.

Names carry shapes: B sequences, S positions, T tokens (T = B·S packed), H heads, N nope, R rope, C latent, V value,
E experts, A chosen experts, F expert width, D hidden, I columns of an indexer's key, J positions it chooses, M rows of
all experts, K of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepwell.ops.base import (
    BLOCK_TOKENS,
    Batch,
    Dispatcher,
    GqaShape,
    IndexShape,
    MlaShape,
    Rotation,
    Routes,
    Routing,
    Sent,
)

ATTENTION_CHUNK = 128


class RouterLoad(msgspec.Struct, frozen=True):
    """What training needs of one MoE layer: tokens per expert, and every score with the choice it led to."""

    layer: int
    count_E: Tensor
    score_TE: Tensor
    chosen_TA: Tensor


class LocalDispatcher:
    """All experts are here. `origin` is order_M: the (token, slot) place, token · A + slot, of each row."""

    def send(self, x: Tensor, routes: Routes[Tensor]) -> Sent[Tensor]:
        flat_M = routes.chosen.reshape(-1)
        order_M = flat_M.argsort(stable=True)
        counts = torch.bincount(flat_M, minlength=routes.experts).tolist()
        return Sent(x[order_M // routes.chosen.shape[1]], counts, (order_M, routes.chosen.shape))

    def bring_back(self, sent: Sent[Tensor]) -> Tensor:
        order_M, shape = sent.origin
        back_M = torch.empty_like(order_M)
        back_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
        rows: Tensor = sent.rows[back_M].unflatten(0, shape)
        return rows


class TorchOps:
    """Operations over whole sequences of equal length, without a cache: tokens_BS from position 0, as in training.

    `loads` collects one `RouterLoad` per MoE layer of the forward pass. `dispatcher` says where experts are.
    """

    def __init__(self, tokens_BS: Tensor, dispatcher: Dispatcher[Tensor] | None = None) -> None:
        self.batch, self.length = tokens_BS.shape
        self.tokens_T = tokens_BS.reshape(-1)
        self.positions_T = torch.arange(self.length, device=tokens_BS.device).repeat(self.batch)
        self.loads: list[RouterLoad] = []
        self.dispatcher: Dispatcher[Tensor] = dispatcher or LocalDispatcher()
        self._rotations: dict[Rotation, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def embed(self, table: Tensor) -> Tensor:
        return F.embedding(self.tokens_T, table)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, heads: int = 1) -> Tensor:
        return F.rms_norm(x.unflatten(-1, (heads, -1)), weight.shape, weight, eps).flatten(-2)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.linear(x, weight)

    def split(self, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(x.split(list(widths), dim=-1))

    def concat(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(xs), dim=-1)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def rope(self, x: Tensor, heads: int, rotation: Rotation) -> Tensor:
        cos_TR, sin_TR = self._angles(rotation)
        x_THK = x.unflatten(-1, (heads, -1))
        plain = x_THK.shape[-1] - rotation.width
        if rotation.leading:
            turn, keep = x_THK.split([rotation.width, plain], dim=-1)
        else:
            keep, turn = x_THK.split([plain, rotation.width], dim=-1)
        cos, sin = cos_TR[:, None].to(x.dtype), sin_TR[:, None].to(x.dtype)
        if rotation.layout == "interleaved":
            a, b = turn[..., 0::2], turn[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        else:
            a, b = turn.chunk(2, dim=-1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return torch.cat([turned, keep] if rotation.leading else [keep, turned], dim=-1).flatten(-2)

    def gqa(self, q: Tensor, k: Tensor, v: Tensor, layer: int, shape: GqaShape) -> Tensor:
        q_BHSK, k_BHSK, v_BHSK = (
            self._heads(x, n) for x, n in ((q, shape.heads), (k, shape.kv_heads), (v, shape.kv_heads))
        )
        group = shape.heads // shape.kv_heads
        return self._attend(q_BHSK, k_BHSK.repeat_interleave(group, 1), v_BHSK.repeat_interleave(group, 1), shape.scale)

    def index(self, q: Tensor, k: Tensor, weight: Tensor, layer: int, shape: IndexShape) -> Tensor:
        rows = [x.view(self.batch, self.length, -1) for x in (q, k, weight)]
        last_S = torch.arange(self.length, device=q.device)
        return torch.cat(
            [choose_positions(q_SK, k_SI, w_SH, last_S, shape) for q_SK, k_SI, w_SH in zip(*rows, strict=True)]
        )

    def mla(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: Tensor,
        layer: int,
        shape: MlaShape,
        chosen: Tensor | None = None,
    ) -> Tensor:
        expanded_BHSK = self._heads(F.linear(latent, kv_b), shape.heads)
        k_nope_BHSN, v_BHSV = expanded_BHSK.split([shape.nope, shape.value], dim=-1)
        k_rope_BHSR = self._heads(k_rope, 1).expand(-1, shape.heads, -1, -1)
        k_BHSK = torch.cat([k_nope_BHSN, k_rope_BHSR], dim=-1)
        if chosen is None:
            return self._attend(self._heads(q, shape.heads), k_BHSK, v_BHSV, shape.scale)
        unseen_BSS = unchosen(chosen, self.length).view(self.batch, self.length, self.length)
        scores_BHSS = self._heads(q, shape.heads) @ k_BHSK.transpose(2, 3) * shape.scale
        probs_BHSS = scores_BHSS.masked_fill(unseen_BSS[:, None], float("-inf")).softmax(-1)
        out_BSD: Tensor = (probs_BHSS @ v_BHSV).transpose(1, 2).flatten(2)
        return out_BSD.flatten(0, 1)

    def gated(self, x: Tensor, gate_up: Tensor, bias: Tensor | None = None) -> Tensor:
        gate, up = F.linear(x, gate_up, bias).chunk(2, dim=-1)
        return F.silu(gate) * up

    def route(self, x: Tensor, router: Tensor, bias: Tensor | None, routing: Routing, layer: int) -> Routes[Tensor]:
        score_TE = self._scores(x, router, routing)
        chosen_TA = choose_experts(score_TE, bias, routing)
        weight_TA = expert_weights(score_TE, chosen_TA, routing)
        count_E = torch.bincount(chosen_TA.reshape(-1), minlength=routing.experts)
        self.loads.append(RouterLoad(layer, count_E, score_TE, chosen_TA))
        return Routes(chosen_TA, weight_TA, routing.experts)

    def dispatch(self, x: Tensor, routes: Routes[Tensor]) -> Sent[Tensor]:
        return self.dispatcher.send(x, routes)

    def experts(self, sent: Sent[Tensor], gate_up: Tensor, down: Tensor) -> Sent[Tensor]:
        if not len(gate_up) == len(down) == len(sent.counts):
            raise ValueError(f"rows are for {len(sent.counts)} experts; here are {len(gate_up)} and {len(down)}")
        outs = []
        for expert, rows_KD in enumerate(sent.rows.split(list(sent.counts))):
            gate, up = F.linear(rows_KD, gate_up[expert]).chunk(2, dim=-1)
            outs.append(F.linear(F.silu(gate) * up, down[expert]))
        return msgspec.structs.replace(sent, rows=torch.cat(outs))

    def combine(
        self, x: Tensor, routes: Routes[Tensor], done: Sent[Tensor], shared: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        slots_TAD = self.dispatcher.bring_back(done)
        routed = (slots_TAD * routes.weight[..., None].to(slots_TAD.dtype)).sum(1)
        return routed if shared is None else routed + self.linear(self.gated(x, shared[0]), shared[1])

    def select(self, x: Tensor) -> Tensor:
        return x

    def _scores(self, x: Tensor, router: Tensor, routing: Routing) -> Tensor:
        logits_TE = F.linear(x.float(), router.float())
        return logits_TE.softmax(-1) if routing.scoring == "softmax" else logits_TE.sigmoid()

    def _angles(self, rotation: Rotation) -> tuple[Tensor, Tensor]:
        if rotation not in self._rotations:
            inv_freq = torch.tensor(rotation.inv_freq, dtype=torch.float32, device=self.tokens_T.device)
            angle_TR = (self.positions_T[:, None].float() * inv_freq).double()
            cos, sin = angle_TR.cos() * rotation.magnitude, angle_TR.sin() * rotation.magnitude
            self._rotations[rotation] = (cos.float(), sin.float())
        return self._rotations[rotation]

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(self.batch, self.length, heads, -1).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention, a chunk of queries at a time over the keys up to its end.

        Half the products of the full square, and twice as fast as torch's fused kernel on a CPU at small heads.
        """
        q, k, v = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
        outs = []
        for start in range(0, self.length, ATTENTION_CHUNK):
            stop = min(start + ATTENTION_CHUNK, self.length)
            mask_QS = self._mask(start, stop).to(q.dtype).expand(len(q), -1, -1)
            scores = torch.baddbmm(mask_QS, q[:, start:stop], k[:, :, :stop], alpha=scale)
            outs.append(scores.softmax(-1) @ v[:, :stop])
        out_BHSV = torch.cat(outs, dim=1).view(self.batch, -1, self.length, v.shape[-1])
        return out_BHSV.transpose(1, 2).flatten(2).flatten(0, 1)

    def _mask(self, start: int, stop: int) -> Tensor:
        """0 where a query of [start, stop) may look at a key of [0, stop), minus infinity where not."""
        if (start, stop) not in self._masks:
            hidden = torch.full((stop - start, stop), float("-inf"), device=self.tokens_T.device)
            self._masks[start, stop] = hidden.triu(start + 1)
        return self._masks[start, stop]


class PagedTorchOps(TorchOps):
    """The same operations over a step of the engine: packed rows of many sequences and a paged cache per layer.

    `cache` holds one tensor (blocks · 64, width) per layer and is extended in place.
    """

    def __init__(self, batch: Batch, cache: Sequence[Tensor]) -> None:
        super().__init__(torch.from_numpy(batch.tokens_T.astype(np.int64))[None])
        self.positions_T = torch.from_numpy(batch.positions_T.astype(np.int64))
        self.cache, self.step = cache, batch
        self._selected_L = torch.from_numpy(batch.selected_L.astype(np.int64))

    def select(self, x: Tensor) -> Tensor:
        return x[self._selected_L]

    def gqa(self, q: Tensor, k: Tensor, v: Tensor, layer: int, shape: GqaShape) -> Tensor:
        self._store(layer, torch.cat([k, v], dim=-1))

        def keys_values(kept: Tensor) -> tuple[Tensor, Tensor]:
            k_HSK, v_HSK = (x.unflatten(-1, (shape.kv_heads, -1)).transpose(0, 1) for x in kept.chunk(2, dim=-1))
            group = shape.heads // shape.kv_heads
            return k_HSK.repeat_interleave(group, 0), v_HSK.repeat_interleave(group, 0)

        return self._attend_paged(q.unflatten(-1, (shape.heads, -1)), layer, keys_values, shape.scale)

    def index(self, q: Tensor, k: Tensor, weight: Tensor, layer: int, shape: IndexShape) -> Tensor:
        self._store(layer, k)
        chosen_TJ = torch.empty(len(q), shape.top_k)
        for sequence, rows in self._sequences():
            positions, at = self.step.positions_T[rows], torch.from_numpy(rows)
            kept = self.cache[layer][self._slots(sequence, np.arange(positions[-1] + 1))]
            last = torch.from_numpy(positions.astype(np.int64))
            chosen_TJ[at] = choose_positions(q[at], kept, weight[at], last, shape)
        return chosen_TJ

    def mla(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: Tensor,
        layer: int,
        shape: MlaShape,
        chosen: Tensor | None = None,
    ) -> Tensor:
        self._store(layer, torch.cat([latent, k_rope], dim=-1))

        def keys_values(kept: Tensor) -> tuple[Tensor, Tensor]:
            latent_SC, rope_SR = kept.split([shape.latent, shape.rope], dim=-1)
            expanded_HSK = F.linear(latent_SC, kv_b).unflatten(-1, (shape.heads, -1)).transpose(0, 1)
            k_nope, v = expanded_HSK.split([shape.nope, shape.value], dim=-1)
            return torch.cat([k_nope, rope_SR.expand(shape.heads, -1, -1)], dim=-1), v

        return self._attend_paged(q.unflatten(-1, (shape.heads, -1)), layer, keys_values, shape.scale, chosen)

    def _slots(self, sequence: int, positions: Any) -> Tensor:
        pages = self.step.block_table_SP[sequence, positions // BLOCK_TOKENS].astype(np.int64)
        return torch.from_numpy(pages * BLOCK_TOKENS + positions % BLOCK_TOKENS)

    def _sequences(self) -> list[tuple[int, Any]]:
        """(sequence, its rows of this step) for each sequence present."""
        return [(int(s), np.flatnonzero(self.step.sequence_T == s)) for s in np.unique(self.step.sequence_T)]

    def _store(self, layer: int, kept_TW: Tensor) -> None:
        for sequence, rows in self._sequences():
            self.cache[layer][self._slots(sequence, self.step.positions_T[rows])] = kept_TW[torch.from_numpy(rows)]

    def _attend_paged(
        self, q_THK: Tensor, layer: int, keys_values: Any, scale: float, chosen: Tensor | None = None
    ) -> Tensor:
        out: list[Tensor] = [torch.empty(0)] * q_THK.shape[0]
        for sequence, rows in self._sequences():
            positions = self.step.positions_T[rows]
            kept = self.cache[layer][self._slots(sequence, np.arange(positions[-1] + 1))]
            k_HSK, v_HSV = keys_values(kept)
            q_HQK = q_THK[torch.from_numpy(rows)].transpose(0, 1)
            scores_HQS = q_HQK @ k_HSK.transpose(1, 2) * scale
            if chosen is None:
                hidden_QS = torch.arange(kept.shape[0]) > torch.from_numpy(positions.astype(np.int64))[:, None]
            else:
                hidden_QS = unchosen(chosen[torch.from_numpy(rows)], kept.shape[0])
            probs_HQS = scores_HQS.masked_fill(hidden_QS, float("-inf")).softmax(-1)
            for row, values in zip(rows, (probs_HQS @ v_HSV).transpose(0, 1).flatten(1), strict=True):
                out[row] = values
        return torch.stack(out)


def choose_positions(q_TK: Tensor, k_SI: Tensor, weight_TH: Tensor, last_T: Tensor, shape: IndexShape) -> Tensor:
    """chosen_TJ of rows that see keys 0 to `last_T`: the best, ascending, then -1; ties go to the lower position."""
    q_TK, k_SI, weight_TH = q_TK.detach(), k_SI.detach(), weight_TH.detach()
    length, seen = len(k_SI), min(shape.top_k, len(k_SI))
    chosen_TJ = q_TK.new_full((len(q_TK), shape.top_k), -1, dtype=torch.float32)
    for start in range(0, len(q_TK), ATTENTION_CHUNK):
        part = slice(start, start + ATTENTION_CHUNK)
        q_THI = q_TK[part].unflatten(-1, (shape.heads, shape.head_dim)).float()
        scores_THS = (q_THI @ k_SI.float().T).relu()
        score_TS = (weight_TH[part].float()[..., None] * scores_THS).sum(1) * shape.scale
        hidden_TS = torch.arange(length, device=q_TK.device) > last_T[part, None]
        order_TS = score_TS.masked_fill(hidden_TS, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
        best_TJ = order_TS[:, :seen]
        best_TJ = best_TJ.masked_fill(best_TJ > last_T[part, None], length).sort(dim=-1).values
        chosen_TJ[part, :seen] = best_TJ.masked_fill(best_TJ == length, -1).float()
    return chosen_TJ


def unchosen(chosen_TJ: Tensor, length: int) -> Tensor:
    """True where a row of chosen_TJ leaves out a position below `length`, as (T, length)."""
    hidden = torch.ones(len(chosen_TJ), length + 1, dtype=torch.bool, device=chosen_TJ.device)
    at_TJ = chosen_TJ.long()
    return hidden.scatter_(1, at_TJ.masked_fill(at_TJ < 0, length), False)[:, :length]


def choose_experts(score_TE: Tensor, bias_E: Tensor | None, routing: Routing) -> Tensor:
    """chosen_TA, from the best down; ties go to the lower index (a stable sort). No gradient passes."""
    choice_TE = score_TE.detach()
    if routing.method == "noaux_tc" and bias_E is not None:
        choice_TE = choice_TE + bias_E
    if routing.method != "greedy" and routing.n_group > 1:
        grouped_TGK = choice_TE.unflatten(-1, (routing.n_group, -1))
        best = 2 if routing.method == "noaux_tc" else 1
        group_score_TG = grouped_TGK.topk(best, dim=-1).values.sum(-1)
        kept_TG = group_score_TG.sort(dim=-1, descending=True, stable=True).indices[:, : routing.topk_group]
        allowed_TG = torch.zeros_like(group_score_TG, dtype=torch.bool).scatter_(1, kept_TG, True)
        allowed_TE = allowed_TG.repeat_interleave(routing.experts // routing.n_group, dim=-1)
        choice_TE = choice_TE.masked_fill(~allowed_TE, float("-inf"))
    return choice_TE.sort(dim=-1, descending=True, stable=True).indices[:, : routing.top_k]


def expert_weights(score_TE: Tensor, chosen_TA: Tensor, routing: Routing) -> Tensor:
    """weight_TA: the unbiased scores of the chosen experts, normalised and scaled as the routing says."""
    weight_TA = score_TE.gather(1, chosen_TA)
    if routing.normalize:
        weight_TA = weight_TA / (weight_TA.sum(-1, keepdim=True) + 1e-20)
    return weight_TA * routing.scale
