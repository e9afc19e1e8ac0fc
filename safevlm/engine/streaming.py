"""An answer piece by piece, while a thread generates it; and the same from a thread to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from safevlm.engine.growing import OnText

Result = TypeVar("Result")


def pieces(generate: Callable[[OnText], object], stop: Event) -> Iterator[str]:
    """Pieces of an answer as `generate(on_text)` says them, in a thread; an error there is raised here.

    When the reader goes away, `stop` is set, and generation ends at its next token.
    """
    heard: SimpleQueue[str | None] = SimpleQueue()
    failure: list[BaseException] = []

    def hear(piece: str) -> bool:
        heard.put(piece)
        return not stop.is_set()

    def work() -> None:
        try:
            generate(hear)
        except BaseException as error:  # noqa: BLE001 - handed to the reader's thread below
            failure.append(error)
        finally:
            heard.put(None)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from iter(heard.get, None)
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
