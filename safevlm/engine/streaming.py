"""An answer piece by piece, while a thread generates it; and the same from a thread to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import closing
from threading import Event, Thread
from typing import TypeVar

from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

Result = TypeVar("Result")


def pieces(
    tokenizer: PreTrainedTokenizerBase, generate: Callable[[TextIteratorStreamer, Event], object], stop: Event
) -> Iterator[str]:
    """Pieces of an answer as `generate(streamer, stop)` writes it, in a thread; an error there is raised here.

    When the reader goes away, `stop` is set, and generation ends at its next token.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            generate(streamer, stop)
        except BaseException as error:  # noqa: BLE001 - handed to the reader's thread below
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _stripped(streamer)
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]


async def in_thread(executor: Executor, work: Callable[[Event], Result]) -> Result:
    """The result of `work(stop)`, computed in the executor. Cancelling sets `stop`."""
    stop = Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work, stop)
    finally:
        stop.set()


async def stream_in_thread(executor: Executor, iterate: Callable[[Event], Generator[str]]) -> AsyncIterator[str]:
    """The pieces of `iterate(stop)`, which runs in the executor. Cancelling, or closing the iterator, sets `stop`."""
    loop, stop = asyncio.get_running_loop(), Event()
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    def work() -> None:
        if stop.is_set():
            return
        with closing(iterate(stop)) as pieces:
            for piece in pieces:
                if stop.is_set():  # nobody reads any more, and the loop may be closed
                    return
                loop.call_soon_threadsafe(queue.put_nowait, piece)

    done = loop.run_in_executor(executor, work)
    done.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (piece := await queue.get()) is not None:
            yield piece
        await done
    finally:
        stop.set()
        done.cancel()  # where it still waits for its turn


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces without the white space around the whole, as a reply has it."""
    held, started = "", False
    for piece in pieces:
        held = held + piece if started else piece.lstrip()
        ready = held.rstrip()
        held, started = held[len(ready) :], started or bool(ready)
        if ready:
            yield ready
