"""Pieces joined are the text, wherever the borders fall; stop texts are found and never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.engine.detokenize import Detokenizer
from deepwell.weights.added_tokens import Marked, Tag

alphabet = st.text("ab€🐳", max_size=12)
data = st.one_of(
    st.binary(max_size=24),
    st.text(max_size=12).map(str.encode),
    st.lists(st.sampled_from([b"\xf0\x9f", b"\x90\xb3", b"\xe2\x82", b"\xac", b"\xff", b"a", b"\xc3"])).map(b"".join),
)


def joined(pieces: list[Marked]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def pieces(parts: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, str | None]:
    detokenizer = Detokenizer(stop)
    text = joined([*(piece for part in parts for piece in detokenizer.push(part)), *detokenizer.flush()])
    return text, detokenizer.stopped


def cut_by_reference(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """Read one character after another until the text read ends with a stop text."""
    for end in range(1, len(text) + 1):
        found = max((s for s in stop if text[:end].endswith(s)), key=len, default=None)
        if found is not None:
            return text[: end - len(found)], found
    return text, None


@given(data)
def test_every_split_in_two_gives_the_whole_decoding(data: bytes) -> None:
    whole = data.decode("utf-8", "replace")
    for at in range(len(data) + 1):
        assert pieces([data[:at], data[at:]]) == (whole, None)
    assert pieces([bytes([byte]) for byte in data]) == (whole, None)


@given(data)
def test_a_piece_never_holds_half_a_character(data: bytes) -> None:
    """What is shown stays the start of the text, whatever bytes follow."""
    detokenizer = Detokenizer()
    shown = ""
    for end in range(1, len(data) + 1):
        shown += joined(detokenizer.push(data[end - 1 : end]))
        for rest in (b"", b"\x80", b"\x9f\x90\xb3", b"a"):
            assert (data[:end] + rest).decode("utf-8", "replace").startswith(shown)


@given(alphabet, st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_texts_cut_as_if_characters_came_one_by_one(text: str, stop: list[str], draw: st.DataObject) -> None:
    data, stops = text.encode(), tuple(stop)
    borders = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    parts = [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]
    assert pieces(parts, stops) == cut_by_reference(text, stops)


@given(alphabet, st.text("ab€", min_size=1, max_size=4))
def test_only_what_could_become_a_stop_text_is_held_back(text: str, stop: str) -> None:
    detokenizer = Detokenizer((stop,))
    shown = ""
    for end in range(1, len(text) + 1):
        shown += joined(detokenizer.push(text[end - 1].encode()))
        if detokenizer.stopped:
            return
        held = text[len(shown) : end]
        assert text[:end] == shown + held
        assert held == max((stop[:n] for n in range(len(stop)) if text[:end].endswith(stop[:n])), key=len)


def test_after_a_stop_nothing_more_is_said() -> None:
    detokenizer = Detokenizer(("stop",))
    assert detokenizer.push(b"a st") == ["a "]
    assert detokenizer.push(b"op b") == []
    assert detokenizer.stopped == "stop"
    assert detokenizer.push(b"c") == detokenizer.mark(7, "<s>") == detokenizer.flush() == []


@pytest.mark.parametrize(
    ("parts", "text"),
    [([b"\xf0\x9f\x90"], "\ufffd"), ([b"\xe2", b"a"], "\ufffda"), ([b"\xff", b"\xf0\x9f"], "\ufffd\ufffd")],
)
def test_broken_bytes_become_replacement_characters(parts: list[bytes], text: str) -> None:
    assert pieces(parts) == (text, None)


def said(*parts: bytes | Tag | int, stop: tuple[str, ...]) -> tuple[list[Marked], bool]:
    """What comes of bytes, tags and special tokens, which are spelled `<number>`; neighbouring texts joined."""
    detokenizer = Detokenizer(stop)
    out: list[Marked] = []
    for part in parts:
        spelling = part if isinstance(part, Tag) else f"<{part!r}>"
        out += detokenizer.push(part) if isinstance(part, bytes) else detokenizer.mark(part, spelling)
    out += detokenizer.flush()
    merged: list[Marked] = []
    for piece in out:
        plain = isinstance(piece, str) and not isinstance(piece, Tag)
        if plain and merged and isinstance(merged[-1], str) and not isinstance(merged[-1], Tag):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged, detokenizer.stopped is not None


ROW = Tag("<row>", 5)


@pytest.mark.parametrize(
    ("parts", "stop", "shown", "stopped"),
    [
        ((b"a", ROW, b"b"), (), ["a", ROW, "b"], False),
        ((b"a", ROW, b"b"), ("<row>",), ["a"], True),
        ((b"a", ROW, b"b"), ("ow>b",), ["a<r"], True),
        ((b"a", ROW, b"b"), ("a<ro",), [], True),
        ((b"a", ROW, b"b"), ("ow>bc",), ["a", ROW, "b"], False),
        ((b"a", ROW, ROW, b"b"), ("<row>b",), ["a", ROW], True),
        ((b"a", 7, b"b"), (), ["a", 7, "b"], False),
        ((b"a", 7, b"b"), ("<7>",), ["a"], True),
        ((b"a", 7, b"b"), ("a<7>b",), [], True),
        ((b"a", 7, b"b"), ("ab",), ["a", 7, "b"], False),
        ((b"a", 7, b"b"), ("7",), ["a", 7, "b"], False),
        ((b"a", 7, b"b"), ("<",), ["a", 7, "b"], False),
        ((b"a", 7, b"b"), (">b",), ["a", 7, "b"], False),
        ((b"a", 7, b"b>b"), (">b",), ["a", 7, "b"], True),
        ((b"a", 7, b"b"), ("<7>c",), ["a", 7, "b"], False),
        ((b"\xe2\x82", 7, b"\xac"), (), ["\ufffd", 7, "\ufffd"], False),
    ],
)
def test_stop_texts_find_tags_as_text_and_special_tokens_whole(
    parts: tuple[bytes | Tag | int, ...], stop: tuple[str, ...], shown: list[Marked], stopped: bool
) -> None:
    got, ended = said(*parts, stop=stop)
    assert (got, ended) == (shown, stopped)
    assert [type(piece) for piece in got] == [type(piece) for piece in shown]


def test_a_tag_is_given_whole_though_its_end_could_begin_a_stop_text() -> None:
    detokenizer = Detokenizer(("w>!",))
    assert detokenizer.push(b"a") == ["a"]
    assert detokenizer.mark(ROW, ROW) == []
    (given, rest) = detokenizer.push(b"b")
    assert (given, type(given), rest) == (ROW, Tag, "b")
