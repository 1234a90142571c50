"""What `deepwell models` says of a model is what it takes: its tensors, its cache, the context that a loader sets."""

from pathlib import Path

import msgspec
import pytest
import seeded
import torch
from transformers import AutoModelForCausalLM

from deepwell.loading import runner as runner_module
from deepwell.loading.convert import prepare
from deepwell.loading.fit import PRECISIONS, fit, report
from deepwell.loading.memory import memory_need
from deepwell.loading.pack import gguf_storages, storages
from deepwell.loading.runner import NativeRunner
from deepwell.model import from_hugging_face
from deepwell.model.accounting import file_bytes
from deepwell.model.published import find_published
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.source import open_source
from fakes import write_tiny_tokenizer


@pytest.mark.parametrize("name", seeded.CONFIGS)
def test_parameters_are_those_of_the_tensors(name: str, tmp_path: Path) -> None:
    seeded.save(name, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    told = report(name, checkpoint.config, 1 << 40)
    tensors = [t for t in checkpoint.tensors.values() if not (checkpoint.config.tied and t.name == "lm_head.weight")]
    assert told.total_params == sum(int(t.raw.size) for t in tensors)
    without_modules = msgspec.structs.replace(checkpoint.config, mtp_layers=0)  # transformers saves none
    assert file_bytes(without_modules, "float32") == 4 * sum(int(t.raw.size) for t in tensors)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen2-wide", "v3-wide"])
def test_weights_take_as_many_bytes_as_told(name: str, precision: native.Storage, tmp_path: Path) -> None:
    """Every matrix and vector as packed; routers of 8 rows and key heads of 32 columns are padded here."""
    seeded.save(name, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    handles = NativeRunner(checkpoint, precision, blocks=1).handles
    packed = sum(handle.nbytes if hasattr(handle, "nbytes") else 4 * handle.size for handle in handles.values())
    assert fit(checkpoint.config, precision, 1 << 40).weight_bytes <= packed
    assert packed == pytest.approx(fit(checkpoint.config, precision, 1 << 40).weight_bytes, rel=0.03)


@pytest.mark.parametrize("precision", ["q6_k", "q4_k"])
@pytest.mark.parametrize("name", ["qwen2", "qwen2-wide", "llama-tied-bias", "v2-lite", "v3-wide"])
def test_a_gguf_file_takes_as_many_bytes_as_told(name: str, precision: str, tmp_path: Path) -> None:
    """With rows of no whole blocks in another type, and a head of more bits, as they are converted."""
    seeded.save(name, tmp_path / "model", dtype=torch.bfloat16)
    folder, file = write_tiny_tokenizer(tmp_path / "model"), tmp_path / "model.gguf"
    prepare(folder, "gguf", precision).write(file, lambda done, total: None)
    source, config = open_source(file), Checkpoint(folder).config
    assert gguf_storages(config, precision) == storages(source, "auto")
    told = fit(config, precision, 1 << 40)
    read = report("", source.config, 1 << 40, kept=(precision, storages(source, "auto"))).precisions[0]
    assert told == read


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama-gqa-linear", "v2-lite", "v3"])
def test_the_cache_is_allocated_as_told(
    name: str, precision: native.Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes per token, and the context and the tokens that a loader with the same memory gives."""
    seeded.save(name, tmp_path)
    config = Checkpoint(tmp_path).config
    free = memory_need(config, precision).total + 400_000
    told = fit(config, precision, free)
    monkeypatch.setattr(runner_module, "free_memory", lambda machine: free)
    runner = NativeRunner(Checkpoint(tmp_path), precision)
    assert told.fits
    assert runner._cache.nbytes == told.kv_bytes_per_token * told.cache_tokens
    assert runner.blocks * BLOCK_TOKENS == told.cache_tokens
    assert runner.context == told.context
    assert runner.cache_dtype == told.cache_dtype


def test_what_does_not_fit() -> None:
    config = seeded.CONFIGS["v3"]()
    shape = from_hugging_face(config.to_dict())
    assert AutoModelForCausalLM.from_config(config).num_parameters() < report("v3", shape, 0).total_params + 1
    for precision in PRECISIONS:
        need = fit(shape, precision, 1 << 40).need_bytes
        assert not fit(shape, precision, need - 1).fits
        assert fit(shape, precision, need - 1).context == 0


def test_flops_grow_with_depth_by_the_attention_alone() -> None:
    """V3 after d tokens: 2 · 128 heads · (2 · 512 + 64) · 61 layers per token and position, absorbed."""
    model = find_published("DeepSeek-V3")
    assert model is not None
    flops = report(model.name, model.config, 0).flops_per_token
    assert flops["4096"] - flops["0"] == 4096 * 2 * 128 * (2 * 512 + 64) * 61
    assert flops["0"] / 1e9 == pytest.approx(2 * (36.63 - 0.0), rel=0.03), "two per active parameter"


def test_a_released_size_on_a_given_machine() -> None:
    """67 GB of int4 weights in 80 GB of memory, none in 16."""
    model = find_published("DeepSeek-LLM-67B")
    assert model is not None
    fits = {one.precision: one.fits for one in report(model.name, model.config, 80 * 10**9).precisions}
    assert fits == {
        "float32": False, "bfloat16": False, "int8": True, "q6_k": True, "q4_k": True, "int4": True
    }  # fmt: skip
    assert not any(one.fits for one in report(model.name, model.config, 16 * 10**9).precisions)
