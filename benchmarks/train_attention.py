"""Causal attention of training on a CPU: chunks of queries against torch's fused kernel and the full square.

    OMP_NUM_THREADS=1 python benchmarks/train_attention.py

Forward and backward, CPU milliseconds (median of 7), at the head shapes of the `nano` and `mini` presets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deepwell.ops import torch_ops

ROWS, HEADS, LENGTH, KEY, VALUE = 4, 4, 512, 48, 32
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def chunked(length: int) -> Attention:
    ops = torch_ops.TorchOps(torch.zeros(ROWS, LENGTH, dtype=torch.long))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch_ops.ATTENTION_CHUNK = length
        return ops._attend(q, k, v, KEY**-0.5)

    return attend


def milliseconds(attend: Attention, dtype: torch.dtype) -> float:
    q, k, v = (torch.randn(ROWS, HEADS, LENGTH, n, dtype=dtype, requires_grad=True) for n in (KEY, KEY, VALUE))
    spent = []
    for _ in range(8):
        begun = time.process_time()
        attend(q, k, v).sum().backward()
        spent.append(1000 * (time.process_time() - begun))
    return statistics.median(spent[1:])


def main() -> None:
    torch.manual_seed(0)
    print("| attention | float32 | bfloat16 |\n|---|---|---|")
    ways: dict[str, Attention] = {"torch's fused kernel": fused, "full square": chunked(LENGTH)}
    ways |= {f"chunks of {n}": chunked(n) for n in (64, 128, 256)}
    for name, attend in ways.items():
        print(f"| {name} | {milliseconds(attend, torch.float32):.1f} | {milliseconds(attend, torch.bfloat16):.1f} |")


if __name__ == "__main__":
    main()
