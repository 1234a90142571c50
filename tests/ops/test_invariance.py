"""A token's result has the same bits whatever runs beside it, however it is chunked, on any threads or instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from op_backends import NATIVE_BACKENDS, NativeBackend, int32, moe, normal

from deepwell.ops import native
from deepwell.ops.base import Batch, GqaShape, IndexShape, MlaShape, Rotation, Routing

VOCAB, WIDTH, EXPERTS = 50, 72, 8
MLA = MlaShape(heads=5, nope=24, rope=8, value=20, latent=40, scale=0.2)
GQA = GqaShape(heads=6, kv_heads=2, head_dim=16, scale=0.3)
ROUTING = Routing(EXPERTS, 3, "sigmoid", "noaux_tc", n_group=4, topk_group=2, normalize=True, scale=2.5)
ROTATION = Rotation((1.0, 0.3, 0.1, 0.03), "interleaved")
INDEX = IndexShape(heads=5, head_dim=12, top_k=40, scale=0.1)
INDEX_ROTATION = Rotation((1.0, 0.3, 0.1), "half", leading=True)
CACHE_WIDTHS = [MLA.latent + MLA.rope, 2 * GQA.kv_heads * GQA.head_dim, MLA.latent + MLA.rope, INDEX.head_dim]
LENGTHS = [130, 65, 1, 64, 7]


def weights() -> dict[str, NDArray[np.float32]]:
    shapes = {
        "table": (VOCAB, WIDTH),
        "q": (MLA.heads * (MLA.nope + MLA.rope), WIDTH),
        "kv_a": (MLA.latent + MLA.rope, WIDTH),
        "kv_b": (MLA.heads * (MLA.nope + MLA.value), MLA.latent),
        "index": (INDEX.heads * INDEX.head_dim + INDEX.head_dim + INDEX.heads, WIDTH),
        "o": (WIDTH, MLA.heads * MLA.value),
        "qkv": ((GQA.heads + 2 * GQA.kv_heads) * GQA.head_dim, WIDTH),
        "gqa_o": (WIDTH, GQA.heads * GQA.head_dim),
        "router": (EXPERTS, WIDTH),
        "gate_up": (EXPERTS, 2 * 48, WIDTH),
        "down": (EXPERTS, WIDTH, 48),
        "shared_gate_up": (2 * 144, WIDTH),
        "shared_down": (WIDTH, 144),
        "gate_up_dense": (2 * 160, WIDTH),
        "head": (90, 160),
    }
    made = {name: normal(i, *shape) * shape[-1] ** -0.5 for i, (name, shape) in enumerate(shapes.items())}
    made["k_norm"] = 1 + 0.1 * normal(97, INDEX.head_dim)
    return made | {"norm": 1 + 0.1 * normal(99, WIDTH), "bias": 0.1 * normal(98, EXPERTS)}


def small_model(ops: Any, w: Any) -> Any:
    """Every operation once: an MLA layer with experts, a sparse one, a GQA layer with a dense feed-forward."""
    x = ops.embed(w["table"])
    h = ops.rms_norm(x, w["norm"], 1e-6)
    latent, k_rope = ops.split(ops.linear(h, w["kv_a"]), (MLA.latent, MLA.rope))
    q = ops.rope(ops.linear(h, w["q"]), MLA.heads, ROTATION)
    k_rope = ops.rope(k_rope, 1, ROTATION)
    x = ops.add(x, ops.linear(ops.mla(q, latent, k_rope, w["kv_b"], 0, MLA), w["o"]))
    q_index, k, weight = ops.split(
        ops.linear(h, w["index"]), (INDEX.heads * INDEX.head_dim, INDEX.head_dim, INDEX.heads)
    )
    k = ops.rope(ops.layer_norm(k, w["k_norm"], w["k_norm"], 1e-6), 1, INDEX_ROTATION)
    chosen = ops.index(ops.rope(q_index, INDEX.heads, INDEX_ROTATION), k, weight, 3, INDEX)
    x = ops.add(x, ops.linear(ops.mla(q, latent, k_rope, w["kv_b"], 2, MLA, chosen), w["o"]))
    h = ops.rms_norm(x, w["norm"], 1e-6)
    shared = w["shared_gate_up"], w["shared_down"]
    x = ops.add(x, moe(ops, h, w["router"], w["bias"], w["gate_up"], w["down"], ROUTING, shared))
    h = ops.rms_norm(x, w["norm"], 1e-6)
    kv = GQA.kv_heads * GQA.head_dim
    q, k, v = ops.split(ops.linear(h, w["qkv"]), (GQA.heads * GQA.head_dim, kv, kv))
    k = ops.concat(ops.split(k, (kv // 2, kv // 2)))
    x = ops.add(x, ops.linear(ops.gqa(q, k, v, 1, GQA), w["gqa_o"]))
    return ops.linear(ops.gated(x, w["gate_up_dense"]), w["head"])


def tables() -> NDArray[np.int32]:
    """Three scattered pages for each sequence."""
    return int32(np.random.default_rng(5).permutation(3 * len(LENGTHS)).reshape(len(LENGTHS), 3))


def tokens(sequence: int) -> NDArray[np.int32]:
    return int32(np.random.default_rng(sequence).integers(0, VOCAB, LENGTHS[sequence]))


def step(pieces: Sequence[tuple[int, int, int]]) -> Batch:
    """(sequence, first, last) pieces packed in this order, all rows selected."""
    rows = [(s, p) for s, first, last in pieces for p in range(first, last)]
    return Batch(
        int32([tokens(s)[p] for s, p in rows]),
        int32([p for _, p in rows]),
        int32([s for s, _ in rows]),
        tables(),
        int32(range(len(rows))),
    )


def answers(backend: NativeBackend, plan: Sequence[Sequence[tuple[int, int, int]]]) -> dict[tuple[int, int], bytes]:
    """The bits of every (sequence, position) computed by the steps of a plan."""
    outs = backend.run(small_model, weights(), [step(pieces) for pieces in plan], CACHE_WIDTHS, MLA)
    found = {}
    for pieces, out in zip(plan, outs, strict=True):
        rows = iter(out)
        for s, first, last in pieces:
            for p in range(first, last):
                found[s, p] = next(rows).tobytes()
    return found


def alone(sequence: int) -> list[list[tuple[int, int, int]]]:
    return [[(sequence, 0, LENGTHS[sequence])]]


ALL_AT_ONCE = [[(s, 0, n) for s, n in enumerate(LENGTHS)]]


@pytest.mark.parametrize("backend", NATIVE_BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("storage", "cache"), [(s, False) for s in ("float32", "bfloat16", "int8", "int4")] + [("int4", True)]
)
def test_neighbours_leave_no_trace(backend: NativeBackend, storage: native.Storage, cache: bool) -> None:
    backend = NativeBackend(backend.isa, storage, bfloat16_cache=cache)
    together = answers(backend, ALL_AT_ONCE)
    for s in range(len(LENGTHS)):
        for place, bits in answers(backend, alone(s)).items():
            assert bits == together[place], place


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 63, 64])
def test_chunks_leave_no_trace(chunk: int, cache: bool) -> None:
    backend = NativeBackend(NATIVE_BACKENDS[0].isa, "int4" if cache else "float32", bfloat16_cache=cache)
    steps = [
        [(s, first, min(first + chunk, n)) for s, n in enumerate(LENGTHS) if first < n]
        for first in range(0, max(LENGTHS), chunk)
    ]
    assert answers(backend, steps) == answers(backend, ALL_AT_ONCE)


def test_order_in_the_batch_leaves_no_trace() -> None:
    backend = NATIVE_BACKENDS[0]
    assert answers(backend, [ALL_AT_ONCE[0][::-1]]) == answers(backend, ALL_AT_ONCE)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_leave_no_trace(threads: int) -> None:
    isa = NATIVE_BACKENDS[0].isa
    assert answers(NativeBackend(isa, threads=threads), ALL_AT_ONCE) == answers(NATIVE_BACKENDS[0], ALL_AT_ONCE)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
def test_instruction_sets_give_the_same_bits(storage: native.Storage, cache: bool) -> None:
    backends = (NativeBackend(b.isa, storage, bfloat16_cache=cache) for b in NATIVE_BACKENDS)
    first, *others = (answers(backend, ALL_AT_ONCE) for backend in backends)
    for other in others:
        assert other == first
