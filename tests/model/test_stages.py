"""A model cut into stages, each with its own parameters and cache, gives the bits of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import seeded
import torch
from numpy.typing import NDArray
from op_backends import two_steps

from deepwell.errors import ConfigError
from deepwell.loading.runner import NativeRunner
from deepwell.model import Decoder, ModelConfig, param_specs, stage_specs
from deepwell.model.config import from_hugging_face
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.ops.torch_ops import PagedTorchOps, TorchOps
from deepwell.weights.checkpoint import Checkpoint

NAMES = ["v2-lite", "v3", "v32", "llama-tied-bias"]
CUTS = [(0, 1, 3), (0, 2, 3), (0, 1, 2, 3)]
"""Of three layers."""
BLOCKS = 12
each_model = pytest.mark.parametrize("name", NAMES)
each_cut = pytest.mark.parametrize("cuts", CUTS, ids=str)


def stages(config: ModelConfig, handles: dict[str, Any], cuts: Sequence[int]) -> list[Decoder]:
    """A decoder for each stage, that has the stage's parameters and no others."""
    pairs = itertools.pairwise(cuts)
    return [Decoder(config, {p.key: handles[p.key] for p in stage_specs(config, a, b)}, a) for a, b in pairs]


def steps() -> list[Batch]:
    """Prompts, then more of each, with a few rows selected of each step."""
    selected = np.array([3, 0], np.int32)
    return [msgspec.structs.replace(step, selected_L=selected) for step in two_steps(0)]


@each_cut
@each_model
def test_torch(name: str, cuts: tuple[int, ...], tmp_path: Path) -> None:
    """Whole sequences, and steps over a paged cache of each stage's own."""
    seeded.save(name, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    config, last = checkpoint.config, len(cuts) - 2
    handles = {p.key: torch.from_numpy(checkpoint.whole(p)) for p in checkpoint.params}
    parts, whole = stages(config, handles, cuts), Decoder(config, handles)
    tokens_BS = torch.from_numpy(np.random.default_rng(0).integers(0, 320, (2, 40)))

    def caches(layers: int) -> list[torch.Tensor]:
        return [torch.zeros(BLOCKS * BLOCK_TOKENS, width) for width in config.cache_widths(layers=layers)]

    def run(made: Sequence[Any]) -> torch.Tensor:
        """The logits of the last stage, each given the rows of the one before."""
        x = parts[0].embed(made[0])
        for i, (part, ops) in enumerate(zip(parts, made, strict=True)):
            x = part.layers(ops, x, cuts[i], cuts[i + 1])
        return parts[last].logits(made[last], x)

    with torch.no_grad():
        ops = TorchOps(tokens_BS)
        assert torch.equal(run([TorchOps(tokens_BS) for _ in parts]), whole.logits(ops, whole.hidden(ops)))
        cache = caches(config.layers)
        kept = [caches(b - a) for a, b in itertools.pairwise(cuts)]
        for step in steps():
            paged = PagedTorchOps(step, cache)
            wanted = whole.logits(paged, whole.hidden(paged))
            assert torch.equal(run([PagedTorchOps(step, k) for k in kept]), wanted)


class NativeStage:
    """A stage as its process would have it: a plan from rows (or tokens) to rows (or logits), and a cache."""

    def __init__(self, part: Decoder, first: int, last: int) -> None:
        config, recorder = part.config, native.Recorder()
        self.begins, self.ends = first == 0, last == config.layers
        x = part.embed(recorder) if self.begins else recorder.input(config.hidden)
        x = part.layers(recorder, x, first, last)
        out = part.logits(recorder, x) if self.ends else recorder.select(x)
        self.plan = recorder.finish(out, *([] if self.ends else [x]))
        self.cache = native.Cache(config.cache_widths(layers=last - first), BLOCKS)

    def run(self, batch: Batch, x: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if not self.begins:  # it embeds nothing, and need not know the tokens
            batch = msgspec.structs.replace(batch, tokens_T=np.full_like(batch.tokens_T, 2**31 - 2))
        return self.plan.run_all(batch, self.cache, [] if x is None else [x])[0 if self.ends else 1]


@each_cut
@each_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_native(name: str, cuts: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    seeded.save(name, tmp_path)
    runner = NativeRunner(Checkpoint(tmp_path), dtype, cache_dtype="float32", blocks=BLOCKS)
    config = Checkpoint(tmp_path).config
    parts = stages(config, runner.handles, cuts)
    made = [NativeStage(part, a, b) for part, a, b in zip(parts, cuts[:-1], cuts[1:], strict=True)]
    for step in steps():
        x = None
        for stage in made:
            x = stage.run(step, x)
        assert x is not None
        assert x.tobytes() == runner.run(step).tobytes()


@each_model
@pytest.mark.parametrize("mtp", [False, True])
def test_stages_share_the_parameters_out(name: str, mtp: bool) -> None:
    """Each parameter is one stage's, in the model's order; the embedding is the last one's too, where used."""
    config = from_hugging_face(seeded.CONFIGS[name]().to_dict() | {"num_nextn_predict_layers": 1})
    for cuts in CUTS:
        pairs = itertools.pairwise(cuts)
        shares = [[p.key for p in stage_specs(config, a, b, mtp=mtp)] for a, b in pairs]
        assert ("embed" in shares[-1]) == (config.tied or (mtp and config.mtp_layers > 0))
        shares[-1] = [key for key in shares[-1] if key != "embed"]
        assert [key for share in shares for key in share] == [p.key for p in param_specs(config, mtp=mtp)]
        for share, first, last in zip(shares, cuts[:-1], cuts[1:], strict=True):
            layers = {int(key.split(".")[1]) for key in share if key.startswith("layers.")}
            assert layers == set(range(first, last))


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 0), (2, 1), (1, 4), (3, 4)])
def test_stages_of_no_layers_are_refused(first: int, last: int) -> None:
    config = from_hugging_face(seeded.CONFIGS["v3"]().to_dict())
    with pytest.raises(ConfigError, match=f"layers {first} to {last - 1} are no stage of a model with layers 0 to 2"):
        stage_specs(config, first, last)
