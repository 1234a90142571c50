"""Measuring which input columns of a model's matrices are used: one pass over some text, in torch.

Parameters are read when an operation meets them and dropped after it, so that memory holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deepwell.errors import CheckpointError, ConfigError
from deepwell.files import open_given, replacing
from deepwell.model.decoder import Decoder
from deepwell.ops.base import MlaShape, Routes, Routing, Sent
from deepwell.ops.torch_ops import TorchOps
from deepwell.weights.importance import QUERY, importance_shapes
from deepwell.weights.source import Source, open_source
from deepwell.weights.tokenizer import Tokenizer

SEQUENCE = 512
"""Tokens of a sequence, if the model and the text allow."""
LEAST_TOKENS = 32
_BYTES_PER_TOKEN = 16
"""Text read for each token wanted: more than tokenizers make of one."""
Key: TypeAlias = Any
"""A parameter's key, in the place where `TorchOps` takes the tensor itself."""


class CalibrationOps(TorchOps):
    """`TorchOps` whose weights are keys: `load` gives the tensor, `importance` collects mean squares by key."""

    def __init__(self, tokens_BS: Tensor, load: Callable[[str], Tensor]) -> None:
        super().__init__(tokens_BS)
        self.importance: dict[str, Tensor] = {}
        self._load = load

    def _maybe(self, key: Key | None) -> Tensor | None:
        return None if key is None else self._load(key)

    def embed(self, table: Key) -> Tensor:
        return super().embed(self._load(table))

    def rms_norm(self, x: Tensor, weight: Key, eps: float, heads: int = 1) -> Tensor:
        return super().rms_norm(x, self._load(weight), eps, heads)

    def layer_norm(self, x: Tensor, weight: Key, bias: Key, eps: float) -> Tensor:
        return super().layer_norm(x, self._load(weight), self._load(bias), eps)

    def linear(self, x: Tensor, weight: Key, bias: Key | None = None) -> Tensor:
        self.importance[weight] = mean_square(x)
        return super().linear(x, self._load(weight), self._maybe(bias))

    def mla(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: Key,
        layer: int,
        shape: MlaShape,
        chosen: Tensor | None = None,
    ) -> Tensor:
        self.importance[kv_b] = mean_square(latent)
        nope_THN = q.unflatten(-1, (shape.heads, -1))[..., : shape.nope]
        self.importance[kv_b + QUERY] = mean_square(nope_THN)
        return super().mla(q, latent, k_rope, self._load(kv_b), layer, shape, chosen)

    def gated(self, x: Tensor, gate_up: Key, bias: Key | None = None) -> Tensor:
        self.importance[gate_up] = mean_square(x)
        return super().gated(x, self._load(gate_up), self._maybe(bias))

    def route(self, x: Tensor, router: Key, bias: Key | None, routing: Routing, layer: int) -> Routes[Tensor]:
        return super().route(x, self._load(router), self._maybe(bias), routing, layer)

    def experts(self, sent: Sent[Tensor], gate_up: Key, down: Key) -> Sent[Tensor]:
        gate_up_EFD, counts = self._load(gate_up), list(sent.counts)
        rows = sent.rows.split(counts)
        self.importance[gate_up] = per_expert(rows, self.dispatcher.bring_back(sent)[:, 0])
        inner = [super(CalibrationOps, self).gated(r, w) for r, w in zip(rows, gate_up_EFD, strict=True)]
        self.importance[down] = per_expert(inner, torch.cat(inner))
        return super().experts(sent, gate_up_EFD, self._load(down))


def mean_square(x: Tensor) -> Tensor:
    """Over the rows, in float64."""
    return x.double().square().mean(0).float()


def per_expert(rows: Sequence[Tensor], everything: Tensor) -> Tensor:
    """A row of mean squares per expert; an expert that no token chose takes those of all rows."""
    overall = mean_square(everything)
    return torch.stack([mean_square(r) if len(r) else overall for r in rows])


def calibrate(path: Path, text: Path, out: Path, tokens: int) -> int:
    """Write the importances of the model at `path` to `out`; returns how many tokens of `text` were used.

    ConfigError if the text cannot be read or is too short, CheckpointError for a broken model.
    """
    source = open_source(path)
    tokens_BS = read_tokens(text, source.tokenizer(), tokens, min(SEQUENCE, source.config.context))
    importance = measure(source, tokens_BS)
    try:
        with replacing(out) as part:
            save_file({key: values.contiguous() for key, values in importance.items()}, part, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out}: cannot be written: {error}") from None
    return int(tokens_BS.numel())


def measure(source: Source, tokens_BS: Tensor) -> dict[str, Tensor]:
    """Mean squares of the input columns of every matrix over `tokens_BS`, by key (weights/importance.py)."""
    params = {param.key: param for param in source.params}
    ops = CalibrationOps(tokens_BS, lambda key: torch.from_numpy(source.whole(params[key])))
    decoder = Decoder(source.config, {key: key for key in params})
    with torch.no_grad():
        head_in = decoder.normed(ops, decoder.hidden(ops))  # the logits, wide and many, tell nothing more
    ops.importance["embed" if source.config.tied else "head"] = mean_square(head_in)
    return {key: ops.importance[key] for key in importance_shapes(source.config)}


def read_tokens(text: Path, tokenizer: Tokenizer, limit: int, length: int) -> Tensor:
    """tokens_BS: the first `limit` tokens of the text, in sequences of at most `length` that begin like any other."""
    try:
        with open_given(text) as stream:
            raw = stream.read(limit * _BYTES_PER_TOKEN)
    except OSError as error:
        raise ConfigError(f"{text}: cannot be read: {error.strerror or error}") from None
    ids = tokenizer.encode(raw.decode("utf-8", "replace"))[:limit]
    if len(ids) < LEAST_TOKENS:
        raise ConfigError(f"{text}: has {len(ids)} tokens; calibrating needs at least {LEAST_TOKENS}")
    first = list(tokenizer.opening)
    room = min(length - len(first), len(ids))
    if room < 1:
        raise CheckpointError("the model's context is too short to calibrate it")
    rows = [first + ids[at : at + room] for at in range(0, len(ids) - room + 1, room)]
    return torch.tensor(rows)
