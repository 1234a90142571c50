"""The corpus: same interpreter, same bytes; nothing held out is ever trained on; everything seen is accounted for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from toy import write_module, write_stdlib

from deepwell.errors import DeepwellError
from deepwell.train.corpus import (
    Corpus,
    Document,
    ManifestEntry,
    build_corpus,
    held_out_modules,
    module_of,
    near_duplicates,
)


def reasons(corpus: Corpus) -> dict[str, tuple[str, str]]:
    return {entry.path: (entry.use, entry.reason) for entry in corpus.manifest}


def test_manifest_lists_every_file_with_its_hash_and_fate(stdlib: Path, corpus: Corpus) -> None:
    files = {f.relative_to(stdlib).as_posix() for f in stdlib.rglob("*.py")} - {"site-packages/foreign.py"}
    entries = {e.path: e for e in corpus.manifest if not e.path.startswith("reference:")}
    assert set(entries) == files
    for path, entry in entries.items():
        data = (stdlib / path).read_bytes()
        assert (entry.sha256, entry.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (entry.use == "dropped") == bool(entry.reason)
    lines = corpus.manifest_lines().splitlines()
    assert [msgspec.json.decode(line, type=ManifestEntry) for line in lines] == list(corpus.manifest)


def test_each_rule_drops_what_it_names(corpus: Corpus) -> None:
    fate = reasons(corpus)
    assert fate["encodings/cp0.py"] == ("dropped", "table of characters")
    assert fate["idlelib/window.py"] == ("dropped", "an application, not a library")
    assert fate["latin.py"] == ("dropped", "not UTF-8")
    assert fate["numbers_table.py"] == ("dropped", "few letters: table of data")
    assert fate["twin.py"] == ("dropped", "near-duplicate of os.py")
    assert fate["pydoc_data/topics.py"][0] == "dropped"
    assert fate["reference:assert"] == ("kept", "")


def test_held_out_modules_and_their_tests_are_never_trained_on(corpus: Corpus) -> None:
    held = {module_of(d.path) for d in corpus.held_out}
    assert len(held) == 7
    assert not held & {module_of(d.path) for d in corpus.train}
    fate = reasons(corpus)
    for name in held:
        assert fate[f"{name}.py"][0] == "held-out"
        assert fate[f"test/test_{name}.py"] == ("dropped", "test of a held-out module")


def test_held_out_choice_is_the_smallest_hashes_of_fitting_modules() -> None:
    documents = [Document(f"m{n}.py", "code", "x" * 30_000) for n in range(20)]
    documents += [Document("small.py", "code", "x"), Document("large.py", "code", "x" * 90_000)]
    by_hash = sorted((hashlib.sha256(f"m{n}".encode()).hexdigest(), f"m{n}") for n in range(20))
    assert held_out_modules(documents) == {name for _, name in by_hash[:7]}


def test_a_document_that_holds_held_out_text_is_dropped() -> None:
    lines = [f"held_out_line_{n} = {n}" for n in range(100)]
    secret = Document("secret.py", "code", "\n".join(lines))
    thief = Document("thief.py", "code", "\n".join([*(f"own_{n} = {n}" for n in range(900)), *lines[:30]]))
    honest = Document("honest.py", "code", "\n".join([*(f"mine_{n} = {n}" for n in range(900)), *lines[:10]]))
    assert near_duplicates([thief, honest], [secret]) == {"thief.py": "holds 27% of held-out secret.py"}


def test_same_files_same_corpus_one_byte_another(stdlib: Path, corpus: Corpus, tmp_path: Path) -> None:
    other = write_stdlib(tmp_path / "copy")
    assert build_corpus(other).sha256 == corpus.sha256
    (other / "os.py").write_text((other / "os.py").read_text() + "#\n")
    assert build_corpus(other).sha256 != corpus.sha256


def test_an_installation_without_tests_or_reference_works(tmp_path: Path) -> None:
    write_module(tmp_path, "os.py", 5_000)
    write_module(tmp_path, "json/__init__.py", 30_000)
    corpus = build_corpus(tmp_path)
    assert {d.path for d in (*corpus.train, *corpus.held_out)} == {"os.py", "json/__init__.py"}


def test_a_folder_that_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepwellError, match=r"has no os\.py"):
        build_corpus(tmp_path)


def test_dialogues_answer_with_the_documentation_of_trained_modules(corpus: Corpus) -> None:
    talks = [d for d in corpus.train if d.kind == "dialogue"]
    about_os = {d.question: d.text for d in talks if d.path == "os.py"}
    assert about_os["What is the os module for?"] == "The os.py module, made up for tests of the corpus."
    trained = {d.path for d in corpus.train if d.kind != "dialogue"}
    assert {d.path for d in talks} <= trained
    assert not [d for d in talks if d.path.startswith("test/")]


@pytest.mark.slow
def test_the_running_interpreter_gives_a_corpus_with_a_quarter_megabyte_held_out() -> None:
    corpus = build_corpus(dialogues=False)
    held = sum(len(d.text.encode()) for d in corpus.held_out)
    assert len({module_of(d.path) for d in corpus.held_out}) == 7
    assert 170_000 < held < 340_000
    assert sum(len(d.text) for d in corpus.train) > 5_000_000
    assert any(d.kind == "reference" for d in corpus.train)
    assert all(e.licence == "PSF-2.0" for e in corpus.manifest)
