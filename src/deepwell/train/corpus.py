"""The corpus: only what CPython installs, its library as source and its language reference as text.

Every file of the standard library is listed in a manifest, kept or dropped with the reason. Seven library modules are
held out by a stable hash of their names and never trained on, and neither are their tests. The same interpreter gives
the same corpus, byte for byte, and so the same hash.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from deepwell.errors import DeepwellError

HELD_OUT_MODULES = 7
HELD_OUT_BYTES = (24_000, 48_000)
"""Smallest and largest module that may be held out: seven of them make about a quarter of a megabyte."""
SHINGLE_LINES = 5
NEAR_DUPLICATE = 0.6
CONTAMINATED = 0.2
LICENCE = "PSF-2.0"

DROP_RULES = (
    ("site-packages/*", "not part of the standard library"),
    ("dist-packages/*", "not part of the standard library"),
    ("ensurepip/_bundled/*", "bundled third-party code"),
    ("config-*", "belongs to one installation"),
    ("_sysconfigdata*.py", "belongs to one installation"),
    ("sitecustomize.py", "belongs to one installation"),
    ("usercustomize.py", "belongs to one installation"),
    ("encodings/*", "table of characters"),
    ("html/entities.py", "table of characters"),
    ("stringprep.py", "generated table"),
    ("pydoc_data/topics.py", "kept as text: see the reference: entries"),
    ("idlelib/*", "an application, not a library"),
    ("turtledemo/*", "an application, not a library"),
    ("lib2to3/*", "a grammar of another Python"),
    ("test/test_lib2to3/*", "tests of dropped code"),
    ("lib2to3/tests/*", "tests of dropped code"),
    ("_pydecimal.py", "duplicate of the decimal module in C"),
    ("test/*/bad*.py", "deliberately broken source"),
    ("test/bad*.py", "deliberately broken source"),
    ("test/encoded_modules/*", "table of characters"),
    ("test/test_importlib/data*", "empty packages"),
    ("__phello__*", "test fixture"),
    ("antigravity.py", "joke"),
    ("this.py", "enciphered text"),
)

Kind = Literal["code", "tests", "reference", "dialogue"]


class Document(msgspec.Struct, frozen=True):
    """A text of the corpus. `path` is relative to the standard library; reference topics are `reference:<topic>`."""

    path: str
    kind: Kind
    text: str
    question: str = ""


class ManifestEntry(msgspec.Struct, frozen=True):
    """What was seen, and what became of it: `kept` for training, `held-out` for measuring, or `dropped` because."""

    path: str
    sha256: str
    bytes: int
    licence: str
    use: Literal["kept", "held-out", "dropped"]
    reason: str = ""


class Corpus(msgspec.Struct, frozen=True):
    """Training and held-out documents in the order of their paths, with the manifest of everything seen."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    manifest: tuple[ManifestEntry, ...]

    def manifest_lines(self) -> bytes:
        """MANIFEST.jsonl: one JSON object per file or reference topic."""
        return b"".join(msgspec.json.encode(entry) + b"\n" for entry in self.manifest)

    @property
    def sha256(self) -> str:
        """Hash of the manifest and of every document made from it."""
        digest = hashlib.sha256(self.manifest_lines())
        for document in (*self.train, *self.held_out):
            digest.update(msgspec.json.encode(document))
        return digest.hexdigest()


def build_corpus(stdlib: Path | None = None, *, dialogues: bool = True) -> Corpus:
    """Read the standard library at `stdlib` (default: of the running interpreter) into a corpus."""
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").is_file():
        raise DeepwellError(f"{root} is not a Python standard library: it has no os.py")
    manifest: list[ManifestEntry] = []
    documents = [*_read_library(root, manifest), *_read_reference(root, manifest)]
    held_names = held_out_modules(documents)
    held_out = tuple(d for d in documents if d.kind == "code" and module_of(d.path) in held_names)
    candidates = [d for d in documents if module_of(d.path) not in held_names]
    dropped = {d.path: "test of a held-out module" for d in documents if d.kind == "tests"}
    dropped = {path: why for path, why in dropped.items() if module_of(path) in held_names}
    dropped |= near_duplicates(candidates, held_out)
    train = [d for d in candidates if d.path not in dropped]
    held_paths = {d.path for d in held_out}
    manifest = [_decide(entry, dropped, held_paths) for entry in manifest]
    if dialogues:
        train += [talk for document in train for talk in _dialogues(document)]
    return Corpus(tuple(train), held_out, tuple(sorted(manifest, key=lambda entry: entry.path)))


def module_of(path: str) -> str:
    """The top-level module a file belongs to; a test belongs to the module it tests (`test/test_abc.py` -> abc)."""
    parts = path.removesuffix(".py").split("/")
    name = parts[1] if parts[0] == "test" and len(parts) > 1 else parts[0]
    return name.removeprefix("test_").lstrip("_")


def held_out_modules(documents: Iterable[Document]) -> frozenset[str]:
    """Names of the modules to hold out: of the fitting sizes, those whose name has the smallest SHA-256."""
    sizes: dict[str, int] = defaultdict(int)
    for document in documents:
        if document.kind == "code":
            sizes[module_of(document.path)] += len(document.text.encode())
    low, high = HELD_OUT_BYTES
    fitting = [name for name, size in sizes.items() if low <= size <= high]
    return frozenset(sorted(fitting, key=lambda name: hashlib.sha256(name.encode()).digest())[:HELD_OUT_MODULES])


def near_duplicates(candidates: Sequence[Document], held_out: Sequence[Document]) -> dict[str, str]:
    """Paths to drop, with why: copies of an earlier document, and documents that give away held-out text.

    Compared are sets of runs of five non-blank lines. A copy shares 60 % (Jaccard) with an earlier document; a
    giveaway holds 20 % of a held-out document.
    """
    owners: dict[int, list[int]] = defaultdict(list)
    sizes: list[int] = []
    dropped: dict[str, str] = {}
    every = [*held_out, *candidates]
    for index, document in enumerate(every):
        shingles = _shingles(document.text)
        sizes.append(len(shingles))
        shared: dict[int, int] = defaultdict(int)
        for shingle in shingles:
            for owner in owners[shingle]:
                shared[owner] += 1
        if index >= len(held_out):
            why = _duplicate_reason(every, sizes, shared, index, len(held_out))
            if why:
                dropped[document.path] = why
                continue
        for shingle in shingles:
            owners[shingle].append(index)
    return dropped


def _duplicate_reason(
    every: Sequence[Document], sizes: Sequence[int], shared: dict[int, int], index: int, held_count: int
) -> str:
    for owner, count in sorted(shared.items()):
        if owner < held_count and count > CONTAMINATED * sizes[owner]:
            return f"holds {count / sizes[owner]:.0%} of held-out {every[owner].path}"
        if owner >= held_count and count > NEAR_DUPLICATE * (sizes[owner] + sizes[index] - count):
            return f"near-duplicate of {every[owner].path}"
    return ""


def _shingles(text: str) -> set[int]:
    lines = [stripped for line in text.splitlines() if (stripped := line.strip()) and not stripped.startswith("#")]
    runs = ("\n".join(lines[i : i + SHINGLE_LINES]) for i in range(max(1, len(lines) - SHINGLE_LINES + 1)))
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}


def _read_library(root: Path, manifest: list[ManifestEntry]) -> Iterator[Document]:
    for file in sorted(root.rglob("*.py"), key=lambda f: f.relative_to(root).as_posix()):
        path = file.relative_to(root).as_posix()
        if path.startswith(("site-packages/", "dist-packages/")):
            continue
        data = file.read_bytes()
        reason, text = _judge(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        manifest.append(ManifestEntry(path, sha256, len(data), LICENCE, "dropped" if reason else "kept", reason))
        if not reason:
            kind: Kind = "tests" if _is_test(path) else "code"
            yield Document(path, kind, f"# {path}\n{text}")


def _is_test(path: str) -> bool:
    folders = path.split("/")[:-1]
    return any(folder in ("test", "tests", "idle_test") for folder in folders)


def _judge(path: str, data: bytes) -> tuple[str, str]:
    """Why a file is dropped (or the empty string), and its text."""
    for pattern, reason in DROP_RULES:
        if fnmatch.fnmatchcase(path, pattern):
            return reason, ""
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return "not UTF-8", ""
    if len(text) < 200:
        return "too short", ""
    if "\x00" in text or "\r" in text or "\f" in text.replace("\n\f", ""):
        return "binary or odd line ends", ""
    if max(map(len, text.splitlines())) > 1000:
        return "has a line of over 1000 characters: data", ""
    dense = [c for c in text if not c.isspace()]
    if sum(c.isascii() for c in dense) < 0.9 * len(dense):
        return "mostly not ASCII: data", ""
    if sum(c.isalpha() or c == "_" for c in dense) < 0.5 * len(dense):
        return "few letters: table of data", ""
    return "", text.replace("\f", "")


def _read_reference(root: Path, manifest: list[ManifestEntry]) -> Iterator[Document]:
    """The language reference, one document per topic of `pydoc_data/topics.py`; repeated topics are dropped."""
    file = root / "pydoc_data" / "topics.py"
    if not file.is_file():
        return
    seen: set[str] = set()
    for topic, text in sorted(_topics(file).items()):
        data = text.encode()
        sha256 = hashlib.sha256(data).hexdigest()
        reason = "duplicate topic" if sha256 in seen else ""
        seen.add(sha256)
        path = f"reference:{topic}"
        manifest.append(ManifestEntry(path, sha256, len(data), LICENCE, "dropped" if reason else "kept", reason))
        if not reason:
            yield Document(path, "reference", text)


def _topics(file: Path) -> dict[str, str]:
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return dict(ast.literal_eval(node.value))
    raise DeepwellError(f"{file}: no dictionary of topics found")


def _dialogues(document: Document) -> Iterator[Document]:
    """Questions about the public names of a library module, answered by their documentation."""
    if document.kind == "reference":
        topic = document.path.partition(":")[2]
        yield Document(document.path, "dialogue", _first_words(document.text), f"Explain {topic} in Python.")
    if document.kind != "code":
        return
    module = document.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if any(part.startswith("_") for part in module.split(".")):
        return
    tree = ast.parse(document.text)
    yield from _answer(document.path, f"What is the {module} module for?", tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield from _answer(document.path, f"What does {module}.{node.name} do?", node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _answer(document.path, f"What is {module}.{node.name}?", node)
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield from _answer(document.path, f"What does {node.name}.{member.name} do?", member)


def _answer(
    path: str, question: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[Document]:
    text = _first_words(ast.get_docstring(node) or "")
    if len(text) >= 25:
        yield Document(path, "dialogue", text, question)


def _first_words(text: str, limit: int = 900) -> str:
    """The paragraphs that fit in `limit` characters, at least the first one cut at the limit."""
    kept = ""
    for paragraph in text.strip().split("\n\n"):
        if kept and len(kept) + 2 + len(paragraph) > limit:
            break
        kept = f"{kept}\n\n{paragraph}" if kept else paragraph[:limit]
    return kept


def _decide(entry: ManifestEntry, dropped: dict[str, str], held_paths: set[str]) -> ManifestEntry:
    if entry.path in held_paths:
        return msgspec.structs.replace(entry, use="held-out")
    if entry.path in dropped:
        return msgspec.structs.replace(entry, use="dropped", reason=dropped[entry.path])
    return entry
