"""How the pieces of an answer reach who writes them: all that have come at once, a sign of silence, and a client's
leaving at once."""

from __future__ import annotations

import asyncio
import queue

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from deepwell.engine.engine import Stream
from deepwell.engine.types import Delta, Request, SamplingParams
from deepwell.server.answers import watch
from deepwell.server.together import Together

SILENCE = 0.05
HELD_UP = 20 * SILENCE
LAST = Delta(finish_reason="stop")


def stream(id: str = "a") -> Stream:
    return Stream(Request(id=id, prompt=(1,), sampling=SamplingParams()), queue.SimpleQueue())


def said(*texts: str) -> list[Delta]:
    return [Delta(marked=(text,)) for text in texts]


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_what_has_come_is_taken_at_once() -> None:
    async def read() -> list[list[Delta]]:
        answer, taken = stream(), []
        for piece in said("a", "b"):
            answer.deliver(piece)
        async for pieces in watch(answer, stays, HELD_UP):
            taken.append(pieces)
            if len(taken) == 1:
                asyncio.get_running_loop().call_soon(answer.deliver, LAST)
        return taken

    assert asyncio.run(read()) == [said("a", "b"), [LAST]]


def test_silence_is_told_again_and_again_and_ends_with_a_piece() -> None:
    async def read() -> list[list[Delta]]:
        answer, taken = stream(), []
        async for pieces in watch(answer, stays, SILENCE):
            taken.append(pieces)
            if len(taken) == 2:
                answer.deliver(LAST)
        return taken

    assert asyncio.run(read()) == [[], [], [LAST]]


@pytest.mark.parametrize("silence", [None, HELD_UP])
def test_a_client_that_leaves_is_noticed_while_nothing_comes(silence: float | None) -> None:
    async def leaves() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def read() -> Stream:
        answer = stream()
        with pytest.raises(ClientDisconnect):
            await anext(watch(answer, leaves, silence))
        return answer

    answer = asyncio.run(asyncio.wait_for(read(), HELD_UP / 2))
    commands = answer._commands
    assert [commands.get_nowait(), commands.get_nowait()] == [answer.request, "a"]


def test_a_reader_that_is_cancelled_aborts_the_request() -> None:
    async def read() -> Stream:
        answer = stream()
        task = asyncio.ensure_future(anext(watch(answer, stays)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer

    assert asyncio.run(read())._commands.qsize() == 2


def test_streams_are_read_as_one_also_what_came_before() -> None:
    async def read() -> list[list[tuple[int, Delta]]]:
        streams, taken = [stream("a"), stream("b")], []
        [early] = said("early")
        streams[1].deliver(early)

        def end() -> None:
            for one in streams:
                one.deliver(LAST)

        async for pieces in watch(Together(streams), stays, HELD_UP):
            taken.append(pieces)
            if len(taken) == 1:
                asyncio.get_running_loop().call_soon(end)
        return taken

    [early] = said("early")
    assert asyncio.run(read()) == [[(1, early)], [(0, LAST), (1, LAST)]]
