"""What a name of a model on a hub means, and which of a repository's files it takes. Pure: lists of names in and out.

A repository is served from its *.safetensors if it has any, else from a GGUF file, and from nothing else: pickles
(*.bin, *.pt) and Python files run code when they are opened, so they are never fetched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

import msgspec

from deepwell.errors import HubError, shown

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
MAX_LISTING_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
MAX_BYTES = 1 << 44
"""Of a file; what a hub says beyond it is not believed."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_MODELS = re.compile(r"(^|[-._/])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w+][\w./+-]*))?(:(?P<file>.+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


class Reference(msgspec.Struct, frozen=True):
    """ORG/NAME[@REVISION][:FILE]. `file` names a file of the repository, or the quantisation of a GGUF file."""

    repo: str
    revision: str = MAIN
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repo}{revision}{f':{self.file}' if self.file else ''}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a whole commit hash, which always means the same files."""
        return is_commit(self.revision)


class Wanted(msgspec.Struct, frozen=True):
    """Files to fetch. With `indexed`, the index among them says which shards come on top.

    `entry` is the file to open, None for the folder.
    """

    files: tuple[str, ...]
    indexed: bool = False
    entry: str | None = None


def parse(text: str) -> Reference | None:
    """A name of a model on a hub; None if it cannot be one."""
    match = _REFERENCE.fullmatch(text)
    if match is None or "--" in match["repo"] or ".." in match["repo"] or ".." in (match["revision"] or ""):
        return None
    return Reference(match["repo"], match["revision"] or MAIN, match["file"])


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def choose(names: Collection[str], reference: Reference) -> Wanted:
    """Which of a repository's files the model needs. Raises HubError if it has none that can be served."""
    if reference.file:
        return _named(names, reference, reference.file)
    if INDEX in names or SINGLE in names:
        return _safetensors(names, reference)
    models = models_of(names)
    if len(models) == 1:
        return _gguf(names, reference, models[0])
    if models:
        raise HubError(f"{reference} has several GGUF models; choose one as {_choices(reference, models)}")
    raise HubError(_nothing(names, reference))


def shards(index: Any, names: Collection[str], reference: Reference) -> tuple[str, ...]:
    """The files that an index (parsed JSON) places tensors in, all of which must be among `names`."""
    wanted = placed(index, reference)
    for shard in wanted:
        if shard not in names:
            raise HubError(f"{reference}: {INDEX} names {shard}, which the repository does not have; it is incomplete")
    return wanted


def placed(index: Any, reference: Reference) -> tuple[str, ...]:
    """The files that an index (parsed JSON) places tensors in."""
    map_ = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(map_, dict) or not map_ or not all(isinstance(shard, str) for shard in map_.values()):
        raise HubError(f"{reference}: {INDEX} has no weight_map from tensor names to files")
    wanted = tuple(sorted(set(map_.values())))
    for shard in wanted:
        if "/" in shard or not shard.endswith(".safetensors"):
            raise HubError(f"{reference}: {INDEX} names the file {shard!r}; allowed are *.safetensors beside it")
        check_name(shard, reference)
    return wanted


def check_name(name: str, reference: Reference) -> str:
    """A file's name if it stays inside the folder it is put in. Raises HubError."""
    parts = name.split("/")
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES or any(len(part.encode()) > 255 for part in parts):
        raise HubError(f"{reference}: the hub names a file {shown(name)}, longer than a file's name may be")
    odd = "\\" in name or any(unicodedata.category(c) == "Cc" for c in name)
    if odd or any(part in ("", ".", "..") for part in parts) or PurePosixPath(name).is_absolute():
        raise HubError(
            f"{reference}: the hub names a file {shown(name)}, which could lie outside of its folder; refused"
        )
    return name


def _safetensors(names: Collection[str], reference: Reference) -> Wanted:
    for needed in (CONFIG, TOKENIZER):
        if needed not in names:
            raise HubError(f"{reference} has no {needed}, which Deepwell needs beside the weights")
    optional = (name for name in _OPTIONAL if name in names)
    weights = INDEX if INDEX in names else SINGLE
    return Wanted((CONFIG, TOKENIZER, *optional, weights), indexed=weights == INDEX)


def _named(names: Collection[str], reference: Reference, asked: str) -> Wanted:
    if asked in names and asked.endswith(".deepwell"):
        return Wanted((check_name(asked, reference),), entry=asked)
    models = models_of(names)
    found = models_named(models, asked)
    if len(found) == 1:
        return _gguf(names, reference, found[0])
    plain = Reference(reference.repo, reference.revision)
    if found:
        raise HubError(f"{plain} has several GGUF models of {asked!r}; choose one as {_choices(plain, found)}")
    if models:
        close = get_close_matches(asked, [short_name(model) for model in models], n=1)
        hint = f" (did you mean {close[0]}?)" if close and close[0].isprintable() else ""
        raise HubError(f"{plain} has no GGUF model {asked!r}{hint}; it has {_choices(plain, models)}")
    raise HubError(f"{plain} has no file {asked!r}; after the colon goes a GGUF file or a quantisation, as :Q4_K_M")


def models_of(names: Collection[str]) -> list[str]:
    """GGUF files that are models of their own: of a split one, the first shard."""
    found = []
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not _NOT_MODELS.search(name):
            shard = _SHARD.fullmatch(name)
            if shard is None or int(shard["number"]) == 1:
                found.append(name)
    return found


def models_named(models: list[str], asked: str) -> list[str]:
    """Those that a file's name or a quantisation means."""
    exact = [model for model in models if asked in (model, PurePosixPath(model).name)]
    return exact or [model for model in models if _is_of(model, asked)]


def _gguf(names: Collection[str], reference: Reference, first: str) -> Wanted:
    match = _SHARD.fullmatch(first)
    if match is None:
        return Wanted((check_name(first, reference),), entry=first)
    count = int(match["count"])
    files = tuple(f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, count + 1))
    for name in files:
        if check_name(name, reference) not in names:
            raise HubError(f"{reference}: the model is split over {count} files, and the repository has no {name}")
    return Wanted(files, entry=first)


def _is_of(model: str, quantisation: str) -> bool:
    """Whether a path names a quantisation as a word of its own: Q4_K_M is in x-Q4_K_M.gguf, Q4_K is not."""
    stem = model.removesuffix(".gguf")
    return re.search(rf"(^|[-./]){re.escape(quantisation)}($|[-./])", stem, re.IGNORECASE) is not None


def short_name(model: str) -> str:
    """How a choice is written: without shard number, and without .gguf where the quantisation tells it apart."""
    match = _SHARD.fullmatch(model)
    stem = match["stem"] if match else model.removesuffix(".gguf")
    return re.split(r"[-./](?=(?:UD-)?(?:I?Q\d|B?F\d|MXFP))", stem, flags=re.IGNORECASE)[-1]


def _choices(reference: Reference, models: list[str]) -> str:
    short = [short_name(model) for model in models]
    shown = [name if short.count(name) == 1 else model for name, model in zip(short, models, strict=True)]
    more = f" and {len(shown) - 40} more" if len(shown) > 40 else ""
    listed = ", ".join(name if name.isprintable() else repr(name) for name in shown[:40])
    return f"{reference}:NAME, with NAME one of {listed}{more}"


def _nothing(names: Collection[str], reference: Reference) -> str:
    """Why a repository cannot be served."""
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    if pickles:
        return (
            f"{reference} has its weights only as pickles ({pickles[0]!r}), which can run any code when they are "
            "opened; Deepwell reads *.safetensors and GGUF: look for another copy or revision of the model, or save it "
            "with safe_serialization in transformers"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"{reference} has no {SINGLE} and no {INDEX}, only such as {min(others)!r}; it may be an adapter or a part "
            "of a model"
        )
    return f"{reference} has no *.safetensors and no GGUF file; it is not a model that Deepwell can serve"
