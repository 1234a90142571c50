"""A prompt's last hidden state has the same bits alone, in chunks, among others and after a prefix hit."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest
import seeded

from deepwell.engine.core import EngineConfig, EngineCore
from deepwell.engine.types import Request, SamplingParams
from deepwell.loading.load import DType
from deepwell.loading.runner import NativeRunner
from deepwell.options import Speculate
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

MODELS: list[tuple[str, DType, bool]] = [
    ("llama-gqa-linear", "float32", False),
    ("v3", "bfloat16", False),
    ("embedded", "auto", True),
    ("v2-lite", "int4", False),
]


def embeddings(core: EngineCore, requests: list[Request]) -> dict[str, bytes]:
    """The states of those that embed; the others are served beside them."""
    states: dict[str, bytes] = {}
    for request in requests:
        core.add(request)
    while core.live:
        for name, delta in core.step():
            assert delta.error is None, delta.error
            if delta.state is not None:
                assert delta.finish_reason == "length"
                assert delta.token_ids == ()
                states[name] = delta.state.tobytes()
    core.check_integrity()
    return states


@pytest.mark.parametrize(("name", "dtype", "mtp"), MODELS)
def test_same_bits(name: str, dtype: DType, mtp: bool, tmp_path: Path) -> None:
    folder, tokenizer = tmp_path, tiny_tokenizer()
    if name == "embedded":
        folder, tokenizer = embedded_path(), Tokenizer.load(embedded_path())
    else:
        seeded.save(name, folder)
    runner = NativeRunner(Checkpoint(folder), dtype, blocks=256, mtp=mtp)
    speculate: Speculate = "mtp" if mtp else "off"

    def core(budget: int = 512) -> EngineCore:
        return EngineCore(runner, tokenizer, EngineConfig(token_budget=budget, speculate=speculate))

    answered = cases.requests(320, (1, 5, 63, 64, 65, 130), 8)
    wanted = [Request(id=r.id, prompt=r.prompt, sampling=SamplingParams(max_tokens=0), embeds=True) for r in answered]
    alone = {key: state for one in wanted for key, state in embeddings(core(), [one]).items()}
    assert len({*alone.values()}) == len(wanted)
    for budget in (1, 7, 64):
        chunked = {key: state for one in wanted for key, state in embeddings(core(budget), [one]).items()}
        assert chunked == alone, f"chunks of {budget}"
    assert embeddings(core(), [*cases.others(320, 20, 12), *wanted]) == alone, "among others"
    again = core()
    embeddings(again, wanted)
    assert embeddings(again, wanted) == alone, "after a prefix hit"
    assert again.stats().cached_tokens > 0


def test_it_is_what_the_logits_are_made_of(tmp_path: Path) -> None:
    """The head over the state gives the very token that greedy decoding chooses."""
    model = seeded.save("v3", tmp_path)
    runner = NativeRunner(Checkpoint(tmp_path), "float32", blocks=64)
    (asked,) = cases.requests(320, (40,), 1)
    (said,) = EngineCore(runner, tiny_tokenizer()).generate(asked)
    wanted = Request(id="e", prompt=asked.prompt, sampling=SamplingParams(max_tokens=0), embeds=True)
    (read,) = EngineCore(runner, tiny_tokenizer()).generate(wanted)
    assert read.state is not None
    assert read.state.shape == (runner.hidden,)
    head_VD = model.lm_head.weight.detach().numpy()
    assert int((head_VD @ read.state).argmax()) == said.token_ids[0]
