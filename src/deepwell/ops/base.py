"""The table of kernels: what each operation takes, gives and promises. Backends implement `Ops`.

Shapes: T tokens of a step (of all its sequences, packed), D hidden width, K inputs, N outputs of a matrix, H heads,
E routed experts, A experts chosen per token, F expert width, V vocabulary, C latent width, R rope width,
S sequences of a step, P pages of the longest block table, L rows whose logits are wanted, K positions chosen by an
indexer, M rows that experts compute here (T·A where all experts are).

Every operation works row by row in float32: row t of the result depends on row t of the inputs alone (attention: on
the earlier tokens of the same sequence). The order of every reduction depends on shapes of the model only, never on
T, S or the place of a row in the batch. That is what makes a request's bytes independent of its neighbours.

A matrix may be kept quantised. Its inputs are then rounded to 8 bits first: per row and 32 columns, scale = max|x| /
127 and code = rint(x · 127 / max|x|). The head, which nothing follows that could forgive an error, gets what the codes
leave over too, coded in the same way. Sums of products of codes are exact integers; native/kernels_coded.h has the
rest. The KV cache may be kept in bfloat16: keys, values, queries and each page's weights are then rounded to it, and
products are added up in float32; an indexer's keys and queries likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
"""Tokens in a page of the KV cache. Attention reduces page by page, in order."""

A = TypeVar("A")
"""An array of a backend: rows are tokens, columns are features."""


class Rotation(msgspec.Struct, frozen=True):
    """Rotary position embedding of the last `2 * len(inv_freq)` columns of each head, or the first with `leading`.

    The angle of pair i at position p is float32(p) * float32(inv_freq[i]); cosine and sine are multiplied by
    `magnitude`. `interleaved` pairs columns (2i, 2i+1), as DeepSeek's MLA checkpoints do; `half` pairs (i, i+R/2), as
    the llama family does.
    """

    inv_freq: tuple[float, ...]
    layout: Literal["interleaved", "half"]
    magnitude: float = 1.0
    leading: bool = False

    @property
    def width(self) -> int:
        return 2 * len(self.inv_freq)


class GqaShape(msgspec.Struct, frozen=True):
    """Grouped-query attention: `heads` query heads share `kv_heads` key/value heads; `scale` multiplies the scores."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float


class MlaShape(msgspec.Struct, frozen=True):
    """Multi-head latent attention: widths per head of the unrotated (nope), rotated (rope) and value parts."""

    heads: int
    nope: int
    rope: int
    value: int
    latent: int
    scale: float


class IndexShape(msgspec.Struct, frozen=True):
    """The lightning indexer: `heads` query heads share one key of `head_dim` columns and choose `top_k` positions.

    A position's score is scale · Σ over heads h, in order, of weight_h · max(q_h · k, 0) (DeepSeek-V3.2 report, 2.1).
    """

    heads: int
    head_dim: int
    top_k: int
    scale: float


class Routing(msgspec.Struct, frozen=True):
    """How a router picks `top_k` of `experts` from scores s = softmax or sigmoid of the logits (float32).

    greedy: the largest s. group_limited_greedy: a group's score is its largest s; experts outside the best
    `topk_group` of `n_group` groups cannot win (DeepSeek-V2). noaux_tc: choose by c = s + bias; a group's score is the
    sum of its two largest c; experts outside the best groups cannot win, whatever the sign of c (DeepSeek-V3).
    Weights are always the unbiased s of the chosen experts, divided by their sum + 1e-20 if `normalize`, times `scale`.
    Ties go to the lower expert index; experts are listed from the best down.
    """

    experts: int
    top_k: int
    scoring: Literal["softmax", "sigmoid"]
    method: Literal["greedy", "group_limited_greedy", "noaux_tc"]
    n_group: int = 1
    topk_group: int = 1
    normalize: bool = False
    scale: float = 1.0


class Batch(msgspec.Struct, frozen=True):
    """The rows of one step and where their keys live. All int32.

    A sequence's rows are consecutive and its positions ascend by one. Token at position p of sequence s is kept in
    slot p % 64 of page block_table_SP[s, p // 64]; rows of the table that no token names mean nothing. `selected_L`
    lists the rows whose logits are wanted. `more_tables` are those of further cache groups.
    """

    tokens_T: NDArray[np.int32]
    positions_T: NDArray[np.int32]
    sequence_T: NDArray[np.int32]
    block_table_SP: NDArray[np.int32]
    selected_L: NDArray[np.int32]
    more_tables: tuple[NDArray[np.int32], ...] = ()


class Routes(msgspec.Struct, Generic[A], frozen=True):
    """What `route` chose, for a backend that executes: expert numbers chosen_TA, best first, and weight_TA."""

    chosen: A
    weight: A
    experts: int


class Sent(msgspec.Struct, Generic[A], frozen=True):
    """Rows at their experts, in order of the experts, then of the tokens: rows_MD, `counts` of them for each expert
    that is here. `origin` is for the dispatcher that made it: the (token, slot) place that each row goes back to."""

    rows: A
    counts: Sequence[int]
    origin: Any


class Dispatcher(Protocol[A]):
    """Where the rows of experts go. Ranks that hold a part of the experts each swap this and nothing else.

    Both calls may exchange rows with other ranks, so every rank makes them in the same order: layer by layer, `send`
    then `bring_back`, also with no rows of its own. Tokens are ordered by rank: then an expert has the rows, in the
    order, that it would have if one rank had all tokens, and so the bits.
    """

    def send(self, x: A, routes: Routes[A]) -> Sent[A]:
        """Rows of x_TD for every (token, slot), and those of other ranks, at the experts that are here."""
        ...

    def bring_back(self, sent: Sent[A]) -> A:
        """slots_TAD of the rank's own tokens: the rows of `sent`, which experts have replaced, at their places."""
        ...


class Ops(Protocol[A]):
    """The operations a decoder is written in. Weights are opaque handles made by the backend (`Any`)."""

    def embed(self, table: Any) -> A:
        """x_TD: rows of table_VD for the step's tokens."""
        ...

    def rms_norm(self, x: A, weight: Any, eps: float, heads: int = 1) -> A:
        """x / sqrt(mean(x²) + eps) * weight, over the columns of each of `heads` equal heads."""
        ...

    def layer_norm(self, x: A, weight: Any, bias: Any, eps: float) -> A:
        """(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias, over all columns."""
        ...

    def linear(self, x: A, weight: Any, bias: Any | None = None) -> A:
        """y_TN = x_TK · weight_NKᵀ (+ bias_N)."""
        ...

    def head(self, x: A, weight: Any) -> A:
        """logits_LV = x_LD · weight_VDᵀ. What rounding x to 8 bits leaves over is rounded and multiplied as well."""
        ...

    def split(self, x: A, widths: Sequence[int]) -> tuple[A, ...]:
        """Columns of x, cut into consecutive pieces of the given widths."""
        ...

    def concat(self, xs: Sequence[A]) -> A:
        """Pieces put side by side, column-wise."""
        ...

    def add(self, x: A, y: A) -> A: ...

    def rope(self, x: A, heads: int, rotation: Rotation) -> A:
        """x with `rotation.width` columns of each of `heads` equal heads rotated by the row's position."""
        ...

    def gqa(self, q: A, k: A, v: A, layer: int, shape: GqaShape) -> A:
        """Store k, v (T, kv_heads·head_dim) in the cache of `layer`; causal attention of q (T, heads·head_dim)."""
        ...

    def index(self, q: A, k: A, weight: A, layer: int, shape: IndexShape) -> A:
        """Store k (T, head_dim) in the cache of `layer`; the positions a row is to attend to, chosen_TK, as numbers.

        q is (T, heads·head_dim) and weight (T, heads). A row takes the top_k best scores among its own position and
        those before, the lower position of equal ones, in ascending order; shorter pasts whole, then -1. No gradient
        passes.
        """
        ...

    def mla(self, q: A, latent: A, k_rope: A, kv_b: Any, layer: int, shape: MlaShape, chosen: A | None = None) -> A:
        """Store [latent_TC | k_rope_TR] in the cache of `layer`; causal attention; gives (T, heads·value).

        q is (T, heads·(nope+rope)), rotated. kv_b (heads·(nope+value), C) expands a latent to each head's key (its
        nope rows) and value (its value rows); k_rope is shared by all heads. DeepSeek-V2 report, section 2.1.
        With chosen_TK, a result of `index`, a row attends to its chosen positions alone, in their order, 64 at a time:
        a row that chose its whole past has the same bits as without.
        """
        ...

    def gated(self, x: A, gate_up: Any, bias: Any | None = None) -> A:
        """y_TF = silu(gate) * up, where gate | up = x_TK · gate_up_(2F)Kᵀ (+ bias): SwiGLU's first half."""
        ...

    def route(self, x: A, router: Any, bias: Any | None, routing: Routing, layer: int) -> Any:
        """The experts that each row of x_TD is for: chosen_TA, best first, and weight_TA in float32 (`Routes`).

        Logits are x_TD · router_EDᵀ in float32, whatever the rest is kept in; bias_E only with noaux_tc. `layer` says
        whose load is noted, where somebody wants it.
        """
        ...

    def dispatch(self, x: A, routes: Any) -> Any:
        """rows_MD: row t of x_TD once for each of its slots, taken to where the chosen expert is (`Sent`).

        Rows lie in order of the experts, then of the tokens. x is what was routed.
        """
        ...

    def experts(self, sent: Any, gate_up: Any, down: Any) -> Any:
        """Each row of `sent` through its expert e: down_e · gated(row, gate_up_e), in the same order.

        gate_up_E(2F)D (gate rows then up rows) and down_EDF are the experts that are here. An expert without rows is
        not computed.
        """
        ...

    def combine(self, x: A, routes: Any, done: Any, shared: tuple[Any, Any] | None = None) -> A:
        """y_TD = Σ over a row's slots, in order, of weight · what that slot's expert made of the row, which is brought
        back from where it is; plus the shared expert's down · gated(x, gate_up), if there is one.

        `done` is a result of `experts`; shared is (gate_up, down), and x what was routed. The sum is in float32 on
        native, in x's dtype else, and has the same order whatever the rows' neighbours and wherever experts are.
        """
        ...

    def select(self, x: A) -> A:
        """The step's selected rows, x_LD."""
        ...
