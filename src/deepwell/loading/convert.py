"""Writing models anew: packed files, GGUF files, safetensors folders, with a piece of a tensor in memory at a time."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec

from deepwell.errors import ConfigError
from deepwell.loading.pack import DType, label, pack, storages
from deepwell.model.accounting import account
from deepwell.ops.storages import GGML_FLOATS
from deepwell.weights.advice import GGUF_KEYS
from deepwell.weights.checkpoint import Checkpoint, read_config
from deepwell.weights.encode import ENCODERS, SEARCHED, fits
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.folder import folder_files
from deepwell.weights.gguf.keys import General, TokenizerKey
from deepwell.weights.gguf.layout import as_gguf, gguf_type, head_name, of_gguf, otherwise
from deepwell.weights.gguf.metadata import architecture, model_metadata, rope_freqs
from deepwell.weights.gguf.vocabulary import tokenizer_metadata
from deepwell.weights.gguf.writer import gguf_size, write_gguf
from deepwell.weights.importance import read_importance
from deepwell.weights.packed import PackedWriter, Progress
from deepwell.weights.safetensors_writer import safetensors_size, write_safetensors
from deepwell.weights.source import Source, open_source
from deepwell.weights.tensor_stream import TensorStream, as_stored

Target = Literal["packed", "gguf", "safetensors"]

_FLOATS: dict[str, str] = {GGML_FLOATS[name]: name for name in ENCODERS if name in GGML_FLOATS}
_BLOCKS = tuple(name for name in ENCODERS if name not in GGML_FLOATS)
ALLOWED: Mapping[Target, tuple[str, ...]] = {
    "packed": get_args(DType),
    "gguf": ("auto", *_FLOATS, *_BLOCKS),
    "safetensors": ("auto", *_FLOATS),
}
"""How weights may be held, by what is written."""
WEIGHED: Mapping[Target, tuple[str, ...]] = {"packed": ("int4",), "gguf": tuple(SEARCHED), "safetensors": ()}
"""Those of them that importances of input columns make better."""
BESIDE = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*LICEN[SC]E*",
    "*licen[sc]e*",
    "NOTICE*",
    "merges.txt",
)
"""Files of a folder that go with the weights, but for those that describe them."""
_NO_MODULES = "the multi-token prediction module is left out: GGUF files are written without"
_MOST_BESIDE = 256 << 20
_MARGIN = 1 << 20
"""Headers, and what the file system needs for itself."""


class Prepared(msgspec.Struct, frozen=True):
    """A conversion that is known to be possible: about how many bytes it makes, what makes them, the source's notes.
    `otherwise` says which matrices are not of the type asked for, and why.

    `write(path, progress)` writes a new file or, for safetensors, a new folder. It raises OSError while writing; what
    is then at `path` is for the caller to remove.
    """

    bytes: int
    write: Callable[[Path, Progress], None]
    notes: Sequence[str] = ()
    otherwise: str = ""


def target_of(out: Path, asked: str = "auto") -> Target:
    """What is to be written: as asked, else by the suffix of `out`, and a folder for any other name."""
    if asked != "auto":
        return cast(Target, asked)
    suffixes: dict[str, Target] = {".gguf": "gguf", ".deepwell": "packed"}
    return suffixes.get(out.suffix.lower(), "safetensors")


def prepare(
    path: Path, target: Target, dtype: str = "auto", importance: Path | None = None, shard_bytes: int = 5 * 10**9
) -> Prepared:
    """Open and check the model of `path`, and plan how to write it.

    Raises CheckpointError for a broken source, ConfigError for what cannot be written as asked.
    """
    if dtype not in ALLOWED[target]:
        raise ConfigError(f"dtype is {dtype}; a {target} target allows {', '.join(ALLOWED[target])}")
    if importance is not None and dtype not in WEIGHED[target]:
        allowed = " or ".join(WEIGHED[target]) or "fewer bits"
        raise ConfigError(
            f"importance weighs what is quantised to {allowed}, and dtype is {dtype} for a {target} target"
        )
    source = open_source(path)
    if target == "packed":
        kept = cast(DType, dtype)
        return Prepared(packed_size(source, kept), partial(_write_packed, path, kept, importance), source.notes)
    if not isinstance(source, Checkpoint | GgufCheckpoint):
        raise ConfigError(f"{path} is a packed file; convert what it was made of instead")
    kind = _FLOATS.get(dtype, dtype)
    made = _gguf(source, kind, importance) if target == "gguf" else _folder(source, kind, shard_bytes)
    return msgspec.structs.replace(made, notes=[*source.notes, *made.notes])


def packed_size(source: Source, dtype: DType) -> int:
    """About how many bytes the packed file of a model takes: padding, tokenizer and header come on top."""
    cost = account(source.config, label(source, dtype), kept=storages(source, dtype))
    return cost.weight_bytes + (cost.mtp_bytes if source.mtp_params else 0)


def write_packed(path: Path, out: Path, dtype: DType, progress: Progress, importance: Path | None = None) -> None:
    """Write the model of `path` with matrices kept as `dtype` into the new file `out`.

    `importance` weighs the inputs of what is quantised to int4. Raises CheckpointError for a broken source, ConfigError
    for values that are not allowed, OSError while writing; what is then in `out` is for the caller to remove.
    """
    source = open_source(path)
    weighted = read_importance(importance, source.config) if importance else None
    kept, total = storages(source, dtype), packed_size(source, dtype)
    with PackedWriter(out, source.config, label(source, dtype), source.sample) as writer:
        for param in (*source.params, *source.mtp_params):
            writer.add(param, kept[param.key], pack(source, param, kept[param.key], weighted))
            source.release()
            progress(writer.written, max(total, writer.written))
        writer.finish(source.tokenizer(), source.advice)
    progress(writer.written, writer.written)


def _write_packed(path: Path, dtype: DType, importance: Path | None, out: Path, progress: Progress) -> None:
    write_packed(path, out, dtype, progress, importance)


def _gguf(source: Checkpoint | GgufCheckpoint, kind: str, importance: Path | None) -> Prepared:
    architecture(source.config)
    weighted = read_importance(importance, source.config) if importance else None
    if isinstance(source, GgufCheckpoint):
        if kind == "auto":
            raise ConfigError(f"{source.path} is a GGUF file already; say with --dtype what to make of its weights")
        tokenizer = {key: value for key, value in source.metadata.items() if key.startswith(TokenizerKey.PREFIX)}
        name = source.metadata.get(General.NAME)
    else:
        tokenizer = tokenizer_metadata(source.path, source.config.vocab)
        name = source.path.resolve().name
    advice = {GGUF_KEYS[key]: value for key, value in source.advice.given.items()}
    tensors = as_gguf(source.config, as_hugging_face(source), rope_freqs(source.config), weighted)
    head = head_name(source.config)
    planned = [(tensor, gguf_type(tensor, kind, head)) for tensor in tensors]
    values: Counter[str] = Counter()
    for tensor, written in planned:
        values[written] += tensor.count * tensor.width
    most = values.most_common(1)[0][0]
    metadata = model_metadata(source.config, name if isinstance(name, str) else source.path.stem, most)

    def write(out: Path, progress: Progress) -> None:
        write_gguf(out, metadata | advice | tokenizer, planned, progress, source.release)

    left_out = [_NO_MODULES] if source.mtp_params else []
    return Prepared(gguf_size(metadata | advice | tokenizer, planned), write, left_out, otherwise(planned, kind))


def _folder(source: Checkpoint | GgufCheckpoint, kind: str, shard_bytes: int) -> Prepared:
    tensors = as_hugging_face(source, extra=True)
    base = _FLOATS.get(source.stored, "bf16") if kind == "auto" else kind
    if isinstance(source, Checkpoint) and kind == "auto":
        planned = [(tensor, _float_now(tensor)) for tensor in tensors]
    else:
        planned = [(tensor, _folder_type(tensor, base, forced=kind != "auto")) for tensor in tensors]
    source.release()
    if isinstance(source, Checkpoint):
        files, copied = _rewritten(source, GGML_FLOATS[base]), _copied(source.path)
    else:
        files, copied = folder_files(source, GGML_FLOATS[base]), []
    beside = sum(map(len, files.values())) + sum(file.stat().st_size for file in copied)

    def write(out: Path, progress: Progress) -> None:
        out.mkdir(exist_ok=True)
        write_safetensors(out, planned, shard_bytes, progress, source.release)
        for file in copied:
            place = out / file.relative_to(source.path)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
        for name, content in files.items():
            (out / name).write_bytes(content)

    return Prepared(safetensors_size(planned) + beside + _MARGIN, write)


def as_hugging_face(source: Checkpoint | GgufCheckpoint, *, extra: bool = False) -> list[TensorStream]:
    """A model's tensors as a Hugging Face checkpoint has them. With `extra`, also those that Deepwell does not read."""
    return as_stored(source, extra=extra) if isinstance(source, Checkpoint) else of_gguf(source)


def _float_now(tensor: TensorStream) -> str:
    """The type of floats that a tensor has; bfloat16 for what is quantised."""
    return tensor.dtype if tensor.dtype in GGML_FLOATS else "bf16"


def _folder_type(tensor: TensorStream, base: str, *, forced: bool) -> str:
    """`base`, but for what would lose by it: vectors and routers, and without `forced` any floats, stay exact."""
    if tensor.dtype not in GGML_FLOATS or tensor.dtype == base:
        return base
    small = len(tensor.shape) == 1 or tensor.name.endswith("mlp.gate.weight")
    if forced and not small:
        return base
    if tensor.name.endswith("e_score_correction_bias"):
        return "f32"
    return base if all(fits(base, rows) for rows in tensor.pieces()) else tensor.dtype


def _rewritten(source: Checkpoint, dtype: str) -> dict[str, bytes]:
    """config.json, saying what the weights have become."""
    raw: dict[str, Any] = dict(read_config(source.path))
    raw.pop("quantization_config", None)
    raw["dtype" if "dtype" in raw else "torch_dtype"] = dtype
    return {"config.json": msgspec.json.format(msgspec.json.encode(raw), indent=2)}


def _copied(folder: Path) -> list[Path]:
    """Tokenizer, template, generation defaults and licence, as they are."""
    found = {file for pattern in BESIDE for file in folder.glob(pattern) if not file.is_dir()}
    if odd := sorted(file for file in found if not file.is_file()):
        raise ConfigError(f"{odd[0]}: is no regular file, or a link to none; put it right or remove it")
    keep = [file for file in sorted(found) if file.name != "config.json" and not file.name.endswith(".index.json")]
    if sum(file.stat().st_size for file in keep) > _MOST_BESIDE:
        raise ConfigError(f"{folder}: its JSON files exceed {_MOST_BESIDE} bytes; this is no model folder")
    return keep
