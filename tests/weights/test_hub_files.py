"""Which files of a repository are taken, and what is said when the choice is not possible."""

from __future__ import annotations

import pytest

from deepwell.errors import HubError
from deepwell.weights.hub.files import Reference, Wanted, check_name, choose, parse, shards

FOLDER = ("config.json", "tokenizer.json", "model.safetensors")
OTHERS = (
    "README.md",
    "pytorch_model.bin",
    "modeling_deepseek.py",
    "original/consolidated.safetensors",
    "model-Q4_K_M.gguf",
    "vocab.json",
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", Reference("org/name")),
        ("org/My.Name-7b_x", Reference("org/My.Name-7b_x")),
        ("org/name@v1.0", Reference("org/name", "v1.0")),
        ("org/name@refs/pr/3", Reference("org/name", "refs/pr/3")),
        ("org/name:Q4_K_M", Reference("org/name", "main", "Q4_K_M")),
        ("org/name@dev:sub/x.gguf", Reference("org/name", "dev", "sub/x.gguf")),
        ("name", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("~/name", None),
        ("a/b/c", None),
        ("org/../name", None),
        ("org/name@", None),
        ("org/name@../../x", None),
        ("org/name@a\nb", None),
        ("org/a--b", None),
        ("org/.name", None),
    ],
)
def test_names_of_models(text: str, meant: Reference | None) -> None:
    assert parse(text) == meant
    if meant is not None:
        assert str(meant) == text


def test_safetensors_and_what_belongs_to_them_and_nothing_else() -> None:
    names = (*OTHERS, *FOLDER, "generation_config.json", "chat_template.jinja")
    files = ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja", "model.safetensors")
    assert choose(names, Reference("o/n")) == Wanted(files)


def test_an_index_comes_before_a_single_file() -> None:
    found = choose((*FOLDER, "model.safetensors.index.json"), Reference("o/n"))
    assert found.indexed
    assert found.files == ("config.json", "tokenizer.json", "model.safetensors.index.json")


GGUF = (
    "x-Q4_K_M.gguf",
    "x-Q8_0-00001-of-00002.gguf",
    "x-Q8_0-00002-of-00002.gguf",
    "BF16/x-BF16.gguf",
    "mmproj-x-f16.gguf",
    "imatrix.gguf",
)


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("Q4_K_M", ("x-Q4_K_M.gguf",)),
        ("q4_k_m", ("x-Q4_K_M.gguf",)),
        ("x-Q4_K_M.gguf", ("x-Q4_K_M.gguf",)),
        ("Q8_0", ("x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00002-of-00002.gguf")),
        ("x-BF16.gguf", ("BF16/x-BF16.gguf",)),
        ("BF16/x-BF16.gguf", ("BF16/x-BF16.gguf",)),
    ],
)
def test_a_gguf_file_by_name_or_quantisation(asked: str, files: tuple[str, ...]) -> None:
    assert choose(GGUF, Reference("o/n", file=asked)) == Wanted(files, entry=files[0])


def test_the_only_gguf_model_needs_no_name() -> None:
    assert choose(("README.md", "mmproj-f16.gguf", "x.gguf"), Reference("o/n")) == Wanted(("x.gguf",), entry="x.gguf")


def test_a_packed_file_by_its_name() -> None:
    assert choose(("x.deepwell",), Reference("o/n", file="x.deepwell")).entry == "x.deepwell"


@pytest.mark.parametrize(
    ("names", "file", "said"),
    [
        (GGUF, None, ["several GGUF", "o/n:NAME", "BF16", "Q4_K_M", "Q8_0"]),
        (("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"), "Q4_K_M", ["several", "a-Q4_K_M.gguf, b-Q4_K_M.gguf"]),
        (GGUF, "Q4_K", ["no GGUF model 'Q4_K'", "did you mean Q4_K_M?"]),
        (GGUF, "Q2_K", ["no GGUF model 'Q2_K'", "Q4_K_M", "Q8_0"]),
        (FOLDER, "Q4_K_M", ["no file 'Q4_K_M'"]),
        (("x-00001-of-00003.gguf", "x-00003-of-00003.gguf"), None, ["x-00002-of-00003.gguf", "split over 3"]),
        (("config.json", "pytorch_model.bin"), None, ["pickles", "pytorch_model.bin", "safetensors"]),
        (("adapter_model.safetensors",), None, ["adapter_model.safetensors", "no model.safetensors"]),
        (("README.md",), None, ["no *.safetensors and no GGUF"]),
        (("model.safetensors", "config.json"), None, ["tokenizer.json"]),
        (("model.safetensors", "tokenizer.json"), None, ["config.json"]),
        (("../x.gguf",), None, ["../x.gguf", "refused"]),
        (("/etc/x.gguf",), None, ["refused"]),
        (("a\\..\\x.gguf",), None, ["refused"]),
    ],
)
def test_what_cannot_be_chosen_is_explained(names: tuple[str, ...], file: str | None, said: list[str]) -> None:
    with pytest.raises(HubError) as error:
        choose(names, Reference("o/n", file=file))
    assert all(part in str(error.value) for part in said), str(error.value)


@pytest.mark.parametrize("name", ["a", "a/b.c", "…", ".gitattributes"])
def test_plain_names_are_kept(name: str) -> None:
    assert check_name(name, Reference("o/n")) == name


@pytest.mark.parametrize("name", ["", "/a", "a//b", "..", "a/../b", "./a", "a/", "a\\b", "a\x1b[2J", "a\0b"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(HubError, match="refused"):
        check_name(name, Reference("o/n"))


def test_shards_are_those_of_the_index_once_each() -> None:
    index = {"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}
    names = ("m-1.safetensors", "m-2.safetensors", "m-3.safetensors")
    assert shards(index, names, Reference("o/n")) == ("m-1.safetensors", "m-2.safetensors")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ([], "weight_map"),
        ({"weight_map": {}}, "weight_map"),
        ({"weight_map": {"a": 1}}, "weight_map"),
        ({"weight_map": {"a": "m-9.safetensors"}}, "m-9.safetensors, which the repository does not have"),
        ({"weight_map": {"a": "../m.safetensors"}}, "'../m.safetensors'"),
        ({"weight_map": {"a": "evil.bin"}}, "'evil.bin'"),
    ],
)
def test_a_broken_index(index: object, said: str) -> None:
    with pytest.raises(HubError) as error:
        shards(index, ("m-1.safetensors",), Reference("o/n"))
    assert said in str(error.value)
