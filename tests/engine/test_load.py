"""Loading refuses what cannot work, with the numbers, before it has cost anything."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from deepwell.engine.load import check_memory, default_blocks, load_model, storage
from deepwell.errors import CheckpointError, ConfigError
from deepwell.model import account, preset
from deepwell.weights import embedded_path


def test_a_model_too_large_names_what_would_fit() -> None:
    config = preset("tiny")
    int8 = account(config, "int8").weight_bytes
    check_memory(config, "int8", int8)
    with pytest.raises(ConfigError, match=r"needs 0\.0 GB as float32.*--dtype int8 would fit"):
        check_memory(config, "float32", int8)
    with pytest.raises(ConfigError, match="no format that Deepwell keeps weights in would fit"):
        check_memory(config, "float32", 1000)


def test_the_cache_takes_several_contexts_or_what_memory_allows() -> None:
    config = preset("nano")
    block = 64 * config.cache_width * config.layers * 4
    assert default_blocks(config, 1024, 1 << 40) == 16 * 16
    assert default_blocks(config, 1024, 10 * block) == 4
    with pytest.raises(ConfigError, match=f"a KV block takes {block} bytes"):
        default_blocks(config, 1024, block)


@pytest.mark.parametrize(
    ("dtype", "stored", "kept"),
    [("auto", "bfloat16", "bfloat16"), ("auto", "float16", "float32"), ("int4", "float32", "int4")],
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
