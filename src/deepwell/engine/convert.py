"""Writing packed files: a model packed as it would be to serve it, one parameter in memory at a time."""

from __future__ import annotations

from pathlib import Path

from deepwell.engine.pack import DType, label, pack, storages
from deepwell.errors import ConfigError
from deepwell.model.accounting import account
from deepwell.weights.importance import read_importance
from deepwell.weights.packed import PackedWriter, Progress
from deepwell.weights.source import Source, open_source


def packed_size(source: Source, dtype: DType) -> int:
    """About how many bytes the packed file of a model takes: padding, tokenizer and header come on top."""
    cost = account(source.config, label(source, dtype), kept=storages(source, dtype))
    return cost.weight_bytes + (cost.mtp_bytes if source.further else 0)


def write_packed(path: Path, out: Path, dtype: DType, progress: Progress, importance: Path | None = None) -> None:
    """Write the model of `path` with matrices kept as `dtype` into the new file `out`.

    `importance` weighs the inputs of what is quantised to int4. Raises CheckpointError for a broken source, ConfigError
    for values that are not allowed, OSError while writing; what is then in `out` is for the caller to remove.
    """
    if importance is not None and dtype != "int4":
        raise ConfigError(f"importance weighs what is quantised to int4, and dtype is {dtype}")
    source = open_source(path)
    weighted = read_importance(importance, source.config) if importance else None
    kept, total = storages(source, dtype), packed_size(source, dtype)
    with PackedWriter(out, source.config, label(source, dtype), source.fingerprint) as writer:
        for param in (*source.params, *source.further):
            writer.add(param, kept[param.key], pack(source, param, kept[param.key], weighted))
            source.release()
            progress(writer.written, max(total, writer.written))
        writer.finish(source.tokenizer())
    progress(writer.written, writer.written)
