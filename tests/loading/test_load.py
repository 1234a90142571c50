"""Loading refuses what cannot work, with the numbers, before it has cost anything."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading import machine
from deepwell.loading import runner as loading_runner
from deepwell.loading.load import load_model
from deepwell.loading.memory import check_memory, default_blocks, memory_need
from deepwell.loading.pack import storage
from deepwell.model import account, preset
from deepwell.model.accounting import activation_bytes
from deepwell.model.config import MlaConfig, MoeConfig
from deepwell.ops.base import Routing
from deepwell.options import Speculate
from deepwell.weights import embedded_path

V3 = msgspec.structs.replace(
    preset("tiny"),
    vocab=129280,
    hidden=7168,
    layers=61,
    heads=128,
    inter=18432,
    context=163840,
    mla=MlaConfig(q_lora=1536, kv_lora=512, nope=128, rope=64, value=128),
    moe=MoeConfig(Routing(256, 8, "sigmoid", "noaux_tc", 8, 4, True, 2.5), 2048, 1, 3, True),
)


def test_need_counts_weights_cache_and_the_piece_being_read() -> None:
    """DeepSeek-V3: 671 B parameters, 576 values per token and layer, tensors read in pieces of 1 Mi values."""
    need = memory_need(V3, "int4")
    assert need.weights == account(V3, "int4").weight_bytes
    assert need.weights == pytest.approx(671e9 * 4.5 / 8, rel=4e-3)
    assert (need.tokens, need.cache) == (512, 512 * 576 * 61 * 4)
    assert need.reading == (1 << 20) * 5
    assert memory_need(V3, "int4", kv_bytes=2).cache == need.cache // 2
    assert memory_need(V3, "int4", context=100).tokens == 128
    assert memory_need(V3, "int4", blocks=1000).cache == 64_000 * 576 * 61 * 4


def test_a_model_too_large_names_what_would_fit() -> None:
    config = preset("tiny")
    int8 = memory_need(config, "int8").total
    check_memory(config, "int8", int8)
    with pytest.raises(ConfigError, match=r"as int4 \d+\.\d MB: no format that Deepwell keeps weights in would fit"):
        check_memory(config, "int8", 1000)
    with pytest.raises(ConfigError, match="no format that Deepwell keeps weights in would fit"):
        check_memory(config, "int4", 1000)
    with pytest.raises(ConfigError) as told:
        check_memory(V3, "bfloat16", 800 * 10**9, within="the limit of this container")
    assert str(told.value) == (
        "not enough memory: the model needs 1342.9 GB as bfloat16 (1342.3 GB of weights, 72.0 MB of KV cache for 512 "
        "tokens, 0.6 GB to read tensors and to compute 512 tokens at a time), and 800.0 GB are free within the limit "
        "of this container; it would need as int8 713.9 GB (fits), as int4 379.4 GB (fits): use --dtype int8"
    )


def test_what_a_step_computes_counts() -> None:
    """By the rows of a step, and not beside the tensors being read: those are gone before the first step."""
    need = memory_need(V3, "int4")
    assert need.activations == activation_bytes(V3, "int4", rows=512, scored=128) > need.reading
    assert need.total == need.weights + need.cache + need.activations
    less, more = (memory_need(V3, "int4", rows=rows, scored=8) for rows in (8, 4096))
    assert less.activations < need.activations < more.activations
    assert memory_need(V3, "int4", rows=1).activations < less.activations
    check_memory(V3, "int4", need.total)
    with pytest.raises(ConfigError, match="to compute 4096 tokens at a time"):
        check_memory(V3, "int4", need.total, rows=4096)
    tiny = preset("tiny")
    assert memory_need(tiny, "int8", mtp=True).activations > 2 * memory_need(tiny, "int8").activations


def test_the_cache_asked_for_counts() -> None:
    config = preset("tiny")
    free = memory_need(config, "int8").total
    with pytest.raises(ConfigError, match=r"KV cache for 64000 tokens"):
        check_memory(config, "int8", free, blocks=1000)


def test_a_loading_model_meets_the_memory_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    here = msgspec.structs.replace(machine.inspect_machine(), memory_limit=machine.resident_bytes() + 2**20)
    monkeypatch.setattr(loading_runner, "inspect_machine", lambda: here)
    monkeypatch.setattr(machine, "resident_bytes", lambda: here.memory_limit - 2**20)
    with pytest.raises(ConfigError, match=r"needs .* and 1\.0 MB are free within the limit of this container"):
        load_model()


def test_the_cache_takes_several_contexts_or_what_memory_allows() -> None:
    config = preset("nano")
    block = 64 * config.cache_width * config.layers * 4
    assert default_blocks(config, 1024, 1 << 40) == 16 * 16
    assert default_blocks(config, 1024, 10 * block) == 4
    with pytest.raises(ConfigError, match=f"a KV block takes {block} bytes"):
        default_blocks(config, 1024, block)


@pytest.mark.parametrize(
    ("dtype", "stored", "kept"),
    [
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "float32"),
        ("auto", "float8", "bfloat16"),
        ("int4", "float32", "int4"),
    ],
)
def test_storage(dtype: str, stored: str, kept: str) -> None:
    assert storage(dtype, stored) == kept


def test_values_that_are_not_allowed() -> None:
    with pytest.raises(ConfigError, match="dtype is 'int3'; allowed are auto, float32"):
        storage("int3", "float32")
    with pytest.raises(ConfigError, match="context is 5000; this model allows 1 to 1024"):
        load_model(context=5000)
    with pytest.raises(ConfigError, match="threads is -1; allowed are 1 to 1024"):
        load_model(threads=-1)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_path(), folder)
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocab = raw["model"]["vocab"]
    vocab.update({f"extra{i}": len(vocab) + i for i in range(50)})
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(raw))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 4146 tokens, the model only 4096"):
        load_model(folder)


def without_module(folder: Path) -> Path:
    """The embedded model as many copies of models are: the config counts a module that the files lack."""
    shutil.copytree(embedded_path(), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("model.layers.4.")}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("speculate", "loaded"), [("off", False), ("lookup", False), ("mtp", True), ("auto", True)])
def test_the_prediction_module_is_loaded_where_it_may_be_used(speculate: Speculate, loaded: bool) -> None:
    assert (load_model(blocks=2, speculate=speculate).runner.has_draft_head) == loaded


def test_a_model_without_its_prediction_module(tmp_path: Path) -> None:
    folder = without_module(tmp_path / "model")
    assert load_model(folder, blocks=2, speculate="auto").runner.has_draft_head is False
    with pytest.raises(ConfigError, match="has no multi-token prediction module; try lookup"):
        load_model(folder, speculate="mtp")


def with_left_overs(folder: Path, *, counted: bool, without: tuple[str, ...] = ()) -> Path:
    """The embedded model without some tensors, and without the key that counts modules."""
    shutil.copytree(embedded_path(), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith(without)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if not counted:
        del config["num_nextn_predict_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("counted", "without", "note"),
    [
        (
            True,
            ("model.layers.4.eh_proj",),
            "1 tensors of the multi-token prediction module are missing, model.layers.4",
        ),
        (True, ("model.layers.4.mlp", "model.layers.4.self_attn"), "tensors of the multi-token prediction module are"),
        (
            False,
            (),
            "config.json has no num_nextn_predict_layers: the model is read without the multi-token prediction",
        ),
        (False, ("model.layers.4.mlp", "model.layers.4.enorm"), "config.json has no num_nextn_predict_layers"),
    ],
)
def test_left_overs_of_a_prediction_module_are_not_read(
    counted: bool, without: tuple[str, ...], note: str, tmp_path: Path
) -> None:
    """No answer depends on the module, so nothing is refused for its sake; one line says so."""
    folder = with_left_overs(tmp_path / "model", counted=counted, without=without)
    model = load_model(folder, blocks=2, speculate="auto")
    assert model.runner.has_draft_head is False
    assert [note in said for said in model.notes] == [True]
    with pytest.raises(ConfigError, match="has no multi-token prediction module; try lookup"):
        load_model(folder, speculate="mtp")


def test_damage_of_the_decoder_stays_an_error(tmp_path: Path) -> None:
    lacking = with_left_overs(tmp_path / "a", counted=True, without=("model.layers.3.mlp", "model.layers.4.eh_proj"))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.3\.mlp\S+ is missing"):
        load_model(lacking)
    odd = with_left_overs(tmp_path / "b", counted=False)
    tensors = load_file(odd / "model.safetensors")
    save_file(
        tensors | {"model.layers.6.enorm.weight": tensors["model.norm.weight"].clone()}, odd / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.6\.enorm\.weight is none of"):
        load_model(odd)


def test_a_whole_model_has_no_notes() -> None:
    assert load_model(blocks=2).notes == ()


def test_the_modules_weights_count_where_memory_is_short() -> None:
    config = preset("tiny")
    need = memory_need(config, "int8", mtp=True)
    assert need.weights == memory_need(config, "int8").weights + account(config, "int8").mtp_bytes
    check_memory(config, "int8", need.total, mtp=True)
    with pytest.raises(ConfigError, match="the model needs"):
        check_memory(config, "int8", need.total - 1, mtp=True)


def test_the_memory_of_the_steps_that_were_asked_for_counts() -> None:
    """A larger token budget leaves less to the cache."""
    config = preset("tiny")
    usual, large = (memory_need(config, "int8", rows=rows).activations for rows in (512, 8192))
    assert large > 8 * usual
    free = memory_need(config, "int8").total
    with pytest.raises(ConfigError, match="to compute 8192 tokens at a time"):
        check_memory(config, "int8", free, rows=8192)
