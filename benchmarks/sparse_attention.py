"""What sparse attention costs: one layer of DeepSeek-V3.2's attention at its true size, dense and sparse, by depth.

    python benchmarks/sparse_attention.py [--cache-dtype float32] [--depths 2048,8192,32768,131072]

Milliseconds of scores, choice and attention, without the projections before and after them but with those of kv_b
(int8): for one token (decode), and per token of a chunk of 64 (prefill). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, IndexShape, MlaShape

MLA = MlaShape(heads=128, nope=128, rope=64, value=128, latent=512, scale=0.1)
INDEX = IndexShape(heads=64, head_dim=128, top_k=2048, scale=(64 * 128) ** -0.5)
WIDTHS = [MLA.heads * (MLA.nope + MLA.rope), MLA.latent, MLA.rope]
INDEX_WIDTHS = [INDEX.heads * INDEX.head_dim, INDEX.head_dim, INDEX.heads]
CHUNK = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--depths", default="2048,8192,32768,131072")
    parser.add_argument("--threads", type=int, default=native.threads())
    options = parser.parse_args()
    native.set_threads(options.threads)
    depths = [int(depth) for depth in options.depths.split(",")]
    blocks = max(depths) // BLOCK_TOKENS + 2
    cache = native.Cache([sum(WIDTHS[1:]), INDEX.head_dim], blocks, options.cache_dtype == "bfloat16")
    kv_b = native.KvB(MLA.heads, MLA.nope, MLA.value, MLA.latent, "int8")
    kv_b.fill(0, random(0, MLA.heads * (MLA.nope + MLA.value), MLA.latent))
    plans = {kind: plan(kv_b, kind) for kind in ("dense", "index", "sparse")}
    fill(cache, max(depths))
    print(f"{native.isa()}, {native.threads()} threads, {options.cache_dtype} cache; milliseconds per token")
    print("| depth | decode: dense | sparse | of it, indexer | prefill: dense | sparse | of it, indexer |")
    print("|---|---|---|---|---|---|---|")
    for depth in depths:
        cells = [
            timed(plans[kind], cache, depth, rows, kind) for rows in (1, CHUNK) for kind in ("dense", "sparse", "index")
        ]
        print(f"| {depth:,} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


def plan(kv_b: native.KvB, kind: str, top_k: int = INDEX.top_k) -> native.Plan:
    recorder = native.Recorder()
    recorder.embed(native.Matrix(1, 1, 1, "float32"))
    chosen: Any = None
    if kind != "dense":
        index = IndexShape(INDEX.heads, INDEX.head_dim, top_k, INDEX.scale)
        chosen = recorder.index(*(recorder.input(width) for width in INDEX_WIDTHS), 1, index)
    if kind == "index":
        return recorder.finish(recorder.select(chosen))
    return recorder.finish(recorder.select(recorder.mla(*(recorder.input(w) for w in WIDTHS), kv_b, 0, MLA, chosen)))


def fill(cache: native.Cache, depth: int) -> None:
    """Random keys for the indexer, without choosing anything: what is chosen must vary. Latents may stay zero."""
    store = plan(native.KvB(1, 1, 1, 1, "float32"), "index", top_k=depth + CHUNK)
    for start in range(0, depth, CHUNK):
        store.run_all(batch(start, CHUNK), cache, inputs("index", CHUNK, start))


def timed(plan: native.Plan, cache: native.Cache, depth: int, rows: int, kind: str) -> float:
    """Milliseconds per row: the best of several runs."""
    given, step = inputs(kind, rows, 1), batch(depth, rows)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        plan.run_all(step, cache, given)
        best = min(best, time.perf_counter() - begun)
    return best * 1e3 / rows


def batch(start: int, rows: int) -> Batch:
    at = np.arange(rows, dtype=np.int32)
    pages = np.arange(-(-(start + rows) // BLOCK_TOKENS), dtype=np.int32)[None]
    return Batch(np.zeros_like(at), at + start, np.zeros_like(at), pages, at[:0])


def inputs(kind: str, rows: int, seed: int) -> list[Any]:
    widths = [*(INDEX_WIDTHS if kind != "dense" else []), *(WIDTHS if kind != "index" else [])]
    return [random(seed + i, rows, width) for i, width in enumerate(widths)]


def random(seed: int, rows: int, cols: int) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)


if __name__ == "__main__":
    main()
