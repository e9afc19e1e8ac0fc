"""Many clients at once, each about its own image, among clients that go away, do not read, and send nonsense."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest

from safevlm.engine import Engine
from safevlm.types import Generation, Request
from tests.engine import engines
from tests.serve.serving import NAME, Served, asked, serving

CLIENTS, EACH = 40, 8
TOKENS = 6
GROWS = 80.0
"""MiB that the process may grow by after the first requests; it is the clients' process too."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engines.engine("none")


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, batch=32, waiting=256) as running:
        yield running


def question(number: int) -> Request:
    return Request(f"What is at {number}?", (engines.image(number),))


def mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def client(served: Served, number: int, heard: dict[int, str], ids: list[str]) -> None:
    """Asks its questions one after the other; every other one is streamed."""
    async with openai.AsyncOpenAI(
        base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=300.0
    ) as line:
        for place in range(number * EACH, (number + 1) * EACH):
            asking = question(place)
            messages = [asked(asking.text, *asking.images)]
            ask = line.chat.completions
            if place % 2:
                pieces = [
                    piece
                    async for piece in await ask.create(model=NAME, messages=messages, max_tokens=TOKENS, stream=True)
                ]
                heard[place] = "".join(piece.choices[0].delta.content or "" for piece in pieces)
                ids.append(pieces[0].id)
            else:
                answer = await ask.create(model=NAME, messages=messages, max_tokens=TOKENS)
                heard[place] = answer.choices[0].message.content or ""
                ids.append(answer.id)


async def leaver(served: Served, number: int, over: asyncio.Event) -> None:
    """Goes away: before the answer, or in its middle."""
    body = {"model": NAME, "messages": [asked("Tell me.", engines.image(number))], "max_tokens": 60, "stream": True}
    host, _, port = served.address.removeprefix("http://").partition(":")
    draw = random.Random(number)
    while not over.is_set():
        content = json.dumps(body).encode()
        _, line = await asyncio.open_connection(host, int(port))
        line.write(head(len(content)) + content)
        await asyncio.sleep(draw.uniform(0.0, 0.3))
        line.transport.abort()


async def idler(served: Served, over: asyncio.Event) -> None:
    """Asks for a stream, and reads none of it."""
    body = {"model": NAME, "messages": [asked("Tell me.")], "max_tokens": 60, "stream": True}
    content = json.dumps(body).encode()
    host, _, port = served.address.removeprefix("http://").partition(":")
    _, line = await asyncio.open_connection(host, int(port), limit=1)
    line.write(head(len(content)) + content)
    await over.wait()
    line.close()


async def babbler(served: Served, over: asyncio.Event) -> None:
    """Sends what is no request."""
    bodies = [b"", b"{", b"[]", b'{"model": 5}', b'{"model": "tiny", "messages": []}', b"\xff" * 1_000]
    async with httpx2.AsyncClient(timeout=300.0) as line:
        while not over.is_set():
            for content in bodies:
                answer = await line.post(
                    f"{served.address}/v1/chat/completions",
                    content=content,
                    headers={"Content-Type": "application/json"},
                )
                assert answer.status_code == 400
            await asyncio.sleep(0.05)


def head(length: int) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


async def crowd(served: Served, clients: int) -> tuple[dict[int, str], list[str]]:
    """What the first `clients` heard, and the ids of their answers."""
    heard: dict[int, str] = {}
    ids: list[str] = []
    over = asyncio.Event()
    others = [
        *(leaver(served, number, over) for number in range(4)),
        *(idler(served, over) for _ in range(4)),
        babbler(served, over),
    ]
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        await asyncio.gather(*(client(served, number, heard, ids) for number in range(clients)))
    finally:
        over.set()
    await asyncio.gather(*tasks)
    return heard, ids


@pytest.mark.slow
def test_many_clients_get_their_own_answers_each_of_them_once(served: Served, engine: Engine) -> None:
    requests = [question(place) for place in range(CLIENTS * EACH)]
    expected = [reply.text for reply in engine.reply_all(requests, Generation(TOKENS), batch_size=32)]
    assert len(set(expected)) > CLIENTS, "answers that are all the same could be mixed up unseen"
    asyncio.run(crowd(served, clients=8))
    gc.collect()
    before = mebibytes()
    heard, ids = asyncio.run(crowd(served, CLIENTS))
    wrong = {place for place, text in enumerate(expected) if heard.get(place) != text}
    assert not wrong, f"{len(wrong)} of {len(expected)} answers are lost or another's, the first at {min(wrong)}"
    assert len(set(ids)) == len(ids) == len(expected)
    gc.collect()
    assert mebibytes() - before < GROWS
    with suppress(TimeoutError):
        asyncio.run(asyncio.wait_for(empty(served), 30.0))
    assert served.model.batches.waiting == 0 and served.model.batches.busy_since is None, "a place is never free again"


async def empty(served: Served) -> None:
    while served.model.batches.waiting or served.model.batches.busy_since is not None:
        await asyncio.sleep(0.05)
