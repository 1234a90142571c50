"""Pieces joined are the text, wherever the borders fall; stop texts are found and never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.engine.detokenize import Detokenizer

alphabet = st.text("ab€🐳", max_size=12)
data = st.one_of(
    st.binary(max_size=24),
    st.text(max_size=12).map(str.encode),
    st.lists(st.sampled_from([b"\xf0\x9f", b"\x90\xb3", b"\xe2\x82", b"\xac", b"\xff", b"a", b"\xc3"])).map(b"".join),
)


def pieces(parts: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    detokenizer = Detokenizer(stop)
    text = "".join([*map(detokenizer.push, parts), detokenizer.flush()])
    return text, detokenizer.stopped


def cut_by_reference(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Read one character after another until the text read ends with a stop text."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(data)
def test_every_split_in_two_gives_the_whole_decoding(data: bytes) -> None:
    whole = data.decode("utf-8", "replace")
    for at in range(len(data) + 1):
        assert pieces([data[:at], data[at:]]) == (whole, False)
    assert pieces([bytes([byte]) for byte in data]) == (whole, False)


@given(data)
def test_a_piece_never_holds_half_a_character(data: bytes) -> None:
    """What is shown stays the start of the text, whatever bytes follow."""
    detokenizer = Detokenizer()
    shown = ""
    for end in range(1, len(data) + 1):
        shown += detokenizer.push(data[end - 1 : end])
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
        shown += detokenizer.push(text[end - 1].encode())
        if detokenizer.stopped:
            return
        held = text[len(shown) : end]
        assert text[:end] == shown + held
        assert held == max((stop[:n] for n in range(len(stop)) if text[:end].endswith(stop[:n])), key=len)


def test_after_a_stop_nothing_more_is_said() -> None:
    detokenizer = Detokenizer(("stop",))
    assert detokenizer.push(b"a st") == "a "
    assert detokenizer.push(b"op b") == ""
    assert detokenizer.stopped
    assert detokenizer.push(b"c") == detokenizer.flush() == ""


@pytest.mark.parametrize(
    ("parts", "text"),
    [([b"\xf0\x9f\x90"], "\ufffd"), ([b"\xe2", b"a"], "\ufffda"), ([b"\xff", b"\xf0\x9f"], "\ufffd\ufffd")],
)
def test_broken_bytes_become_replacement_characters(parts: list[bytes], text: str) -> None:
    assert pieces(parts) == (text, False)
