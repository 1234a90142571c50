"""What a step takes in memory, foretold from the config, against the arenas that the native backend really lays out."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
import pytest
import seeded

from deepwell.model import preset
from deepwell.model.accounting import activation_bytes
from deepwell.model.config import ModelConfig, from_hugging_face
from deepwell.model.decoder import Decoder
from deepwell.model.params import Param, param_specs
from deepwell.model.published import published
from deepwell.ops import native
from deepwell.ops.base import MlaShape

ROWS, SCORED = 512, 128
RELEASED = ["deepseek-v2-lite", "deepseek-v3", "deepseek-v3.2", "deepseek-llm-7b", "deepseek-r1-distill-qwen-7b"]


def handle(config: ModelConfig, param: Param, storage: native.Storage) -> Any:
    """A parameter without values, whose memory nobody touches."""
    if param.kind == "vector":
        return native.vector(np.zeros(param.shape, np.float32))
    if param.kind == "kv_b":
        shape = cast(MlaShape, config.attention)
        return native.KvB(shape.heads, shape.nope, shape.value, shape.latent, storage)
    *count, rows, cols = param.shape
    make = native.gate_up_matrix if param.key.endswith("gate_up") else native.Matrix
    return make(count[0] if count else 1, rows, cols, "float32" if param.kind == "router" else storage)


def real_bytes(config: ModelConfig, storage: native.Storage, mtp: bool) -> int:
    weights = {param.key: handle(config, param, storage) for param in param_specs(config, mtp=mtp)}
    decoder, recorder = Decoder(config, weights), native.Recorder()
    x = decoder.hidden(recorder)
    plans = [recorder.finish(decoder.logits(recorder, x), *([x] if mtp else []))]
    for again in (False, True) if mtp else ():
        recorder = native.Recorder()
        x, following = recorder.input(config.hidden), recorder.embed(weights["embed"])
        x, logits = decoder.predict_ahead(recorder, x, following, again=again)
        plans.append(recorder.finish(logits, recorder.select(x)))
    return sum(plan.bytes(ROWS, SCORED) for plan in plans)


def check(config: ModelConfig, storage: native.Storage, mtp: bool = False) -> None:
    real = real_bytes(config, storage, mtp)
    told = activation_bytes(config, storage, rows=ROWS, scored=SCORED, mtp=mtp)
    assert real <= told <= 2 * real, told / real


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "q4_k"])
@pytest.mark.parametrize("name", list(seeded.CONFIGS))
def test_every_family(name: str, storage: native.Storage) -> None:
    check(from_hugging_face(seeded.CONFIGS[name]().to_dict()), storage)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_the_prediction_module(storage: native.Storage) -> None:
    check(preset("tiny"), storage, mtp=True)


@pytest.mark.parametrize("storage", ["bfloat16", "q4_k"])
@pytest.mark.parametrize(
    "name", ["deepseek-v2-lite", "deepseek-v3", "deepseek-v3.2", "deepseek-llm-7b", "deepseek-r1-distill-qwen-7b"]
)
def test_released_shapes(name: str, storage: native.Storage) -> None:
    """At their true widths, with two layers of few experts, for the memory is never touched."""
    config = published()[name].config
    small: dict[str, Any] = {"layers": 2, "vocab": 1024, "mtp_layers": 0}
    if config.moe is not None:
        routing = msgspec.structs.replace(config.moe.routing, experts=32, n_group=1, topk_group=1)
        small["moe"] = msgspec.structs.replace(config.moe, routing=routing, first_dense=1)
    check(msgspec.structs.replace(config, **small), storage)


def test_a_plan_counts_rows_and_selected_rows() -> None:
    config = preset("tiny")
    weights = {param.key: handle(config, param, "float32") for param in param_specs(config)}
    recorder, decoder = native.Recorder(), Decoder(config, weights)
    plan = recorder.finish(decoder.logits(recorder, decoder.hidden(recorder)))
    row, wanted = plan.bytes(1, 0), plan.bytes(1, 1) - plan.bytes(1, 0)
    assert wanted >= 4 * config.vocab
    assert plan.bytes(10, 3) == 10 * row + 3 * wanted
    assert plan.bytes(0, 0) == 0
    with pytest.raises(ValueError, match="selects none or some of them"):
        plan.bytes(1, 2)
