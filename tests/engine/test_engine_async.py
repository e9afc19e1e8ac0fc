"""The async forms: the same answers, in turn, from a thread; cancelling stops the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from safevlm.engine import Engine
from safevlm.types import Generation, Request
from tests.engine import engines

LONGEST_WAIT = 120.0
"""Seconds after which something counts as hanging."""
ENDLESS = Generation(max_new_tokens=400)


def _request(seed: int = 1) -> Request:
    return Request("What is in the picture?", (engines.image(seed),))


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), LONGEST_WAIT))


@pytest.fixture
def engine() -> Engine:
    return engines.engine("safety-head")


def test_async_forms_give_what_the_others_give(engine: Engine) -> None:
    async def work() -> None:
        assert (await engine.areply(_request(), engines.SHORT)).text == engine.reply(_request(), engines.SHORT).text
        replies = await engine.areply_all([_request(1), _request(2)], engines.SHORT, batch_size=2)
        assert [reply.text for reply in replies] == [engine.reply(_request(at), engines.SHORT).text for at in (1, 2)]
        assert await engine.alook(_request()) == engine.look(_request())
        assert [piece async for piece in engine.astream(_request(), engines.SHORT)] == list(
            engine.stream(_request(), engines.SHORT)
        )

    _run(work)


def test_concurrent_calls_take_turns_and_change_nothing(engine: Engine) -> None:
    how = [Generation(6, temperature=1.0, seed=seed) for seed in range(4)]
    alone = [engine.reply(_request(at), each).text for at, each in enumerate(how)]
    inside, most, generate = [0], [0], engine.model.generate

    def counted(**inputs: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return generate(**inputs)
        finally:
            inside[0] -= 1

    async def work() -> None:
        replies = await asyncio.gather(*(engine.areply(_request(at), each) for at, each in enumerate(how)))
        assert [reply.text for reply in replies] == alone

    with engines.generating(engine, counted):
        _run(work)
        threads: list[str] = [""] * 4

        def ask(at: int) -> None:
            threads[at] = engine.reply(_request(at), how[at]).text

        running = [threading.Thread(target=ask, args=(at,)) for at in range(4)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(LONGEST_WAIT)
    assert threads == alone, "threads share the seed"
    assert most == [1], "two calls were at the model at once"


@pytest.mark.parametrize("door", ["areply", "astream"])
def test_cancelling_stops_generation(engine: Engine, door: str) -> None:
    started, ended, generate = threading.Event(), [], engine.model.generate

    def watched(**inputs: Any) -> Any:
        started.set()
        output = generate(**inputs)
        ended.append(output.shape[1] - inputs["input_ids"].shape[1])
        return output

    async def read() -> None:
        async for _ in engine.astream(_request(), ENDLESS):
            pass

    async def work() -> None:
        task = asyncio.create_task(read() if door == "astream" else _wait(engine))
        await asyncio.to_thread(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.alook(_request())  # waits for its turn behind what was cancelled

    with engines.generating(engine, watched):
        _run(work)
    assert len(ended) == 1 and ended[0] < ENDLESS.max_new_tokens, f"the model wrote on, {ended} tokens"


async def _wait(engine: Engine) -> None:
    await engine.areply(_request(), ENDLESS)


def test_leaving_a_stream_stops_generation(engine: Engine) -> None:
    async def work() -> None:
        pieces = engine.astream(_request(), ENDLESS)
        await anext(pieces)
        await pieces.aclose()
        assert (await engine.areply(_request(), engines.SHORT)).text

    with engines.watched(engine) as asked:
        _run(work)
    assert asked.new[0].shape[1] < ENDLESS.max_new_tokens


def test_an_error_reaches_the_caller(engine: Engine) -> None:
    async def work() -> None:
        with pytest.raises(OSError, match="lamp"):
            [piece async for piece in engine.astream(_request(), engines.SHORT)]
        with pytest.raises(OSError, match="lamp"):
            await engine.areply(_request(), engines.SHORT)

    with engines.answering(engine, "A cup.", breaks=OSError("the lamp went out")):
        _run(work)


def test_asking_while_a_stream_is_read_does_not_hang(engine: Engine) -> None:
    pieces = engine.stream(_request(), engines.SHORT)
    first = next(pieces)
    assert engine.look(_request()).looked and engine.reply(_request(), engines.SHORT).text
    assert first + "".join(pieces) == engine.reply(_request(), engines.SHORT).text


@pytest.mark.parametrize("given", [["What is it?"], [Request("x"), 64], [Request("x"), {"max_new_tokens": 3}]])
def test_what_is_no_request_or_generation_is_an_error_that_says_what_to_write(engine: Engine, given: list[Any]) -> None:
    with pytest.raises(TypeError, match=r"Request\('|Generation\(max"):
        engine.reply(*given)
