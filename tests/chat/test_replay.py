"""Sampled turns come back token by token behind the same prompt, and only there; what is kept is bounded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from deepwell.chat import Call, Conversation, Message
from deepwell.chat.replay import ENTRY_BYTES, Replay
from fakes import tiny_tokenizer

T = tiny_tokenizer()
BOS, EOS, USER, ASSISTANT, THINK, END_THINK, CALL, SEP, END_CALL = (
    T.special(spelling)
    for spelling in (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
    )
)
HI = Message.of("user", "Hi")
AND = Message.of("user", "And?")
CALLED = Message.of("assistant", calls=(Call(id="call_1", name="f", arguments='{"a": 1}'),))
NOON = Message.of("tool", "noon", answers="call_1")


def ids(*parts: Any) -> tuple[int, ...]:
    return tuple(id for part in parts for id in (T.encode(part) if isinstance(part, str) else [part]))


def letters(text: str) -> list[int]:
    """The text as a model may sample it and no tokenizer would write it: letter by letter."""
    return [id for letter in text for id in T.encode(letter)]


def talk(*messages: Message) -> Conversation:
    return Conversation(messages=messages)


ASKED = ids(BOS, USER, "Hi", ASSISTANT)
SAID = (*letters("The quick"), EOS)
REPLY = Message.of("assistant", "The quick")


def kept(
    said: Message = REPLY, sampled: Sequence[int] = SAID, prompt: Sequence[int] = ASKED, asked: Message = HI
) -> Replay:
    replay = Replay(T, [EOS])
    replay.keep(talk(asked), prompt, said, sampled)
    return replay


def test_the_letters_are_not_what_the_tokenizer_writes() -> None:
    assert tuple(letters("The quick")) != ids("The quick")
    assert T.decode(letters("The quick")) == "The quick"


def test_an_unchanged_turn_has_its_sampled_tokens() -> None:
    rendered = ids(*ASKED, "The quick", EOS, USER, "And?", ASSISTANT)
    expected = ids(*ASKED, *SAID, USER, "And?", ASSISTANT)
    assert kept().apply(talk(HI, REPLY, AND), rendered) == expected
    assert kept().apply(talk(HI), ASKED) == ASKED


def test_calls_are_found_by_their_ids_and_keep_their_bytes() -> None:
    sampled = ids(CALL, "f", SEP, '{ "a":1 }', END_CALL, EOS)
    rendered = ids(*ASKED, CALL, "f", SEP, '{"a": 1}', END_CALL, EOS, "noon", ASSISTANT)
    replay = kept(CALLED, sampled)
    assert replay.apply(talk(HI, CALLED, NOON), rendered) == ids(*ASKED, *sampled, "noon", ASSISTANT)
    other = Message.of("assistant", calls=(Call(id="call_2", name="f", arguments='{"a": 1}'),))
    assert replay.apply(talk(HI, other, NOON), rendered) == rendered
    changed = Message.of("assistant", calls=(Call(id="call_1", name="f", arguments='{"a": 2}'),))
    assert replay.apply(talk(HI, changed, NOON), rendered) == rendered


@pytest.mark.parametrize(
    ("conversation", "rendered"),
    [
        (talk(HI, Message.of("assistant", "The quick "), AND), ids(*ASKED, "The quick ", EOS, ASSISTANT)),
        (talk(Message.of("user", "Ho"), REPLY, AND), ids(BOS, USER, "Ho", ASSISTANT, "The quick", EOS, ASSISTANT)),
        (talk(Message.of("system", "x"), HI, REPLY), ids(BOS, "x", *ASKED[1:], "The quick", EOS, ASSISTANT)),
        (talk(HI, REPLY), ids(BOS, "a tool", *ASKED[1:], "The quick", EOS, ASSISTANT)),
        (talk(HI, Message.of("assistant", "The quick", prefix=True)), ids(*ASKED, "The quick")),
        (talk(HI, Message.of("assistant", "The quick", reasoning="Hm.")), ids(*ASKED, "The quick", EOS, ASSISTANT)),
    ],
)
def test_a_changed_turn_or_another_prompt_is_rendered(conversation: Conversation, rendered: tuple[int, ...]) -> None:
    assert kept().apply(conversation, rendered) == rendered


THOUGHT = Message.of("assistant", "The quick", reasoning="Hm, hm")
THOUGHT_IDS = (*letters("Hm, hm"), END_THINK, *letters("The quick"), EOS)


def test_thoughts_come_back_where_the_prompt_keeps_them() -> None:
    prompt = ids(*ASKED, THINK)
    replay = kept(THOUGHT, THOUGHT_IDS, prompt)
    rendered = ids(*prompt, "Hm, hm", END_THINK, "The quick", EOS, ASSISTANT)
    assert replay.apply(talk(HI, THOUGHT), rendered) == (*prompt, *THOUGHT_IDS, ASSISTANT)
    changed = Message.of("assistant", "The quick", reasoning="Hm!")
    rendered = ids(*prompt, "Hm!", END_THINK, "The quick", EOS, ASSISTANT)
    assert replay.apply(talk(HI, changed), rendered) == rendered


def test_thoughts_that_the_prompt_leaves_out_do_not_come_back() -> None:
    replay = kept(THOUGHT, (THINK, *THOUGHT_IDS))
    rendered = ids(*ASKED, "The quick", EOS, ASSISTANT)
    assert replay.apply(talk(HI, THOUGHT), rendered) == rendered


def test_special_tokens_that_no_text_shows_do_not_come_back() -> None:
    rendered = ids(*ASKED, "The quick", EOS, ASSISTANT)
    assert kept(sampled=(*letters("The "), USER, *letters("quick"), EOS)).apply(talk(HI, REPLY), rendered) == rendered


def test_later_turns_build_on_replayed_ones() -> None:
    replay = kept()
    second = ids(*ASKED, *SAID, USER, "And?", ASSISTANT)
    answer = Message.of("assistant", "brown fox")
    replay.keep(talk(HI, REPLY, AND), second, answer, (*letters("brown fox"), EOS))
    rendered = ids(*ASKED, "The quick", EOS, USER, "And?", ASSISTANT, "brown fox", EOS, ASSISTANT)
    expected = (*second, *letters("brown fox"), EOS, ASSISTANT)
    assert replay.apply(talk(HI, REPLY, AND, answer), rendered) == expected


@pytest.mark.parametrize("sampled", [(), SAID[:-1], (EOS, *SAID)])
def test_only_answers_that_came_to_their_end_are_kept(sampled: tuple[int, ...]) -> None:
    assert len(kept(sampled=sampled)) == 0


def test_continuations_are_not_kept() -> None:
    assert len(kept(asked=Message.of("assistant", "The", prefix=True))) == 0


def test_the_oldest_turns_leave_and_use_keeps_a_turn() -> None:
    replay = Replay(T, [EOS], turns=3)
    rendered = ids(*ASKED, "The quick", EOS, ASSISTANT)
    replayed = (*ASKED, *SAID, ASSISTANT)
    replay.keep(talk(HI), ASKED, REPLY, SAID)
    for number in range(10):
        replay.keep(talk(Message.of("user", f"{number}")), ASKED, REPLY, SAID)
        assert replay.apply(talk(HI, REPLY), rendered) == replayed
        assert len(replay) <= 3
    for number in range(3):
        replay.keep(talk(Message.of("user", f"again {number}")), ASKED, REPLY, SAID)
    assert replay.apply(talk(HI, REPLY), rendered) == rendered


def test_the_bound_in_bytes_holds() -> None:
    entry = ENTRY_BYTES + 4 * 1000
    replay = Replay(T, [EOS], size=5 * entry)
    long = (*T.encode("a") * 1000, EOS)
    for number in range(20):
        replay.keep(talk(Message.of("user", f"{number % 7}")), ASKED, REPLY, long)
        assert replay.size == len(replay) * entry <= 5 * entry
    assert len(replay) == 5
    replay.keep(talk(HI), ASKED, REPLY, (*T.encode("a") * 10_000, EOS))
    assert (len(replay), replay.size) == (0, 0)


def test_threads_may_keep_and_apply_at_once() -> None:
    replay = Replay(T, [EOS], turns=8)
    rendered, replayed = ids(*ASKED, "The quick", EOS, ASSISTANT), (*ASKED, *SAID, ASSISTANT)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            for number in range(200):
                asked = Message.of("user", f"{(number * 7 + seed) % 13}")
                replay.keep(talk(asked), ASKED, REPLY, SAID)
                found = replay.apply(talk(asked, REPLY), rendered)
                if found not in (rendered, replayed):
                    wrong.append(found)
        except Exception as error:
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
    assert len(replay) == 8
    assert replay.size == 8 * (ENTRY_BYTES + 4 * (len(SAID) - 1))
