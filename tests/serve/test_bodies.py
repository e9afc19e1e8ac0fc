"""Bodies that are no JSON, that two readers may read differently, that are too large, too many or too slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from safevlm.serve.exchange import Exchange, Message, Room
from safevlm.serve.limits import Limits
from tests.engine import engines
from tests.serve.serving import NAME, Served, serving, uri

JSON = {"Content-Type": "application/json"}
WORDS = [{"role": "user", "content": "What is it?"}]
BODY_BYTES = 200_000
SLOW = 0.4
"""Seconds for a body."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(
        engines.engine("none"), body_bytes=BODY_BYTES, body_seconds=SLOW, held_bytes=2 * BODY_BYTES
    ) as running:
        yield running


def post(served: Served, content: bytes | Iterator[bytes], **headers: str) -> httpx2.Response:
    return httpx2.post(f"{served.address}/v1/chat/completions", content=content, headers=JSON | headers, timeout=30.0)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": NAME, "messages": WORDS, "max_tokens": 2} | fields).encode()


def with_value(word: str) -> bytes:
    """A body with something in `temperature`'s place that no writer of JSON writes."""
    return body(temperature="HERE").replace(b'"HERE"', word.encode("utf-8", "surrogatepass"))


UNREADABLE = {
    "nothing": b"",
    "no JSON": b"model=tiny",
    "cut": body()[:-3],
    "two documents": body() * 2,
    "NaN": with_value("NaN"),
    "infinity": with_value("-Infinity"),
    "a number without end": with_value("1e999"),
    "many digits": with_value("1" * 5_000),
    "a key twice": body().replace(b"{", b'{"model": "x", ', 1),
    "half a character": with_value(r'"\ud83d"'),
    "half a character as a key": body().replace(b'"max_tokens"', rb'"max_\udc00"'),
    "a surrogate's bytes": with_value("\ud83d"),
    "a bad byte": body().replace(b"What", b"Wh\xfft"),
    "UTF-16": body().decode().encode("utf-16"),
    "UTF-32": body().decode().encode("utf-32"),
    "deep": b'{"model": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    "just too deep": body(metadata=json.loads("[" * 100 + "]" * 100)),
    "many parts": body(messages=[0] * 30_000),
    "many commas beside words": body(metadata={"a": "," * 30_000}, messages=[0] * 20_000),
    "a list": b"[]",
    "a word": b'"x"',
    "null": b"null",
    "true": b"true",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_body_that_two_readers_may_read_differently_is_an_error(served: Served, name: str) -> None:
    answer = post(served, UNREADABLE[name])
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [body(), b"\xef\xbb\xbf" + body(), body(metadata={"a": "," * 60_000}), body(metadata={"a": "\U0001f600"})],
    ids=["plain", "mark", "commas", "emoji"],
)
def test_a_body_is_read_that_can_be_read_in_one_way_only(served: Served, content: bytes) -> None:
    assert post(served, content).status_code == 200


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "a number for a model": ({"model": 5}, "model"),
    "a table for a model": ({"model": {"a": 1}}, "model"),
    "true for a length": ({"max_tokens": True}, "max_tokens"),
    "words for a length": ({"max_tokens": "5"}, "max_tokens"),
    "no role": ({"messages": [{"content": "a"}]}, "messages[0].role"),
    "no address": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    "an address for a table": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]},
        "messages[0].content[0].image_url",
    ),
    "a plain text as a part": ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "a key with a strange name": ({"\u2028\x00": 1}, "\u2028\x00"),
    "a key without end": ({"x" * 10_000: 1}, "x" * 200),
}


@pytest.mark.parametrize("name", PLACES)
def test_an_error_names_the_place_as_the_client_wrote_it(served: Served, name: str) -> None:
    fields, place = PLACES[name]
    answer = post(served, body(**fields))
    assert answer.status_code == 400 and len(answer.content) < 2_000
    assert answer.json()["error"]["param"] == place


def test_a_body_without_a_length_is_bounded_too(served: Served) -> None:
    whole = body()
    assert post(served, iter([whole[:10], whole[10:]])).status_code == 200
    answer = post(served, (b" " * 10_000 for _ in range(50)))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nowhere", "/healthz"])
def test_who_sends_a_long_body_in_vain_hears_why(path: str) -> None:
    limit = 8 << 20  # more than the buffers of a line hold
    content = b'{"model": "' + b"x" * int(1.9 * limit) + b'"}'
    with serving(engines.engine("none"), body_bytes=limit) as served:
        answer = httpx2.post(f"{served.address}{path}", content=content, headers=JSON, timeout=30.0)
    assert answer.status_code == 413


def raw(served: Served, *sent: bytes, wait: float = 0.0) -> bytes:
    """What a server says to bytes that are sent one after the other, `wait` seconds apart, until it closes."""
    host, _, port = served.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as line:
        for piece in sent:
            line.sendall(piece)
            time.sleep(wait)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := line.recv(65_536):
                heard += piece
        return heard


def head(length: str = "Content-Length: 50", **headers: str) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n{more}"
        "\r\n"
    ).encode()


def test_a_body_that_comes_drop_by_drop_is_given_up(served: Served) -> None:
    started = time.monotonic()
    heard = raw(served, head(), b"{", b" ", wait=SLOW / 4)
    assert heard.startswith(b"HTTP/1.1 408") and time.monotonic() - started < 20 * SLOW
    assert b"connection: close" in heard.lower()


def test_bodies_of_all_requests_together_are_bounded(served: Served) -> None:
    host, _, port = served.address.removeprefix("http://").partition(":")
    lines = [socket.create_connection((host, int(port)), timeout=10.0) for _ in range(2)]
    for line in lines:
        line.sendall(head(f"Content-Length: {BODY_BYTES}") + b" " * (BODY_BYTES - 1))
    time.sleep(SLOW / 4)
    answer = post(served, body(metadata={"a": "x" * 10_000}))
    for line in lines:
        line.close()
    assert answer.status_code == 429 and answer.headers["Retry-After"]
    deadline = time.monotonic() + 10.0
    while (answer := post(served, body())).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer.status_code == 200, "the room of a request that went away is never free again"


TRICKS = {
    "two lengths": head("Content-Length: 5\r\nContent-Length: 6"),
    "a length and chunks": head("Content-Length: 5\r\nTransfer-Encoding: chunked", Connection="close") + b"0\r\n\r\n",
    "a negative length": head("Content-Length: -5"),
    "no number for a length": head("Content-Length: five"),
    "another coding": head("Transfer-Encoding: gzip"),
    "no chunk": head("Transfer-Encoding: chunked") + b"zz\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "no host": head().replace(b"Host: localhost\r\n", b""),
    "two hosts": head().replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: evil.example\r\n"),
    "a folded header": head(X="a\r\n b").replace(b"X:", b"Host:"),
    "a header without end": head(X="x" * 200_000),
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_request_that_is_no_http_gets_no_answer_of_the_model(served: Served, name: str) -> None:
    heard = raw(served, TRICKS[name])
    assert heard.split(b" ")[1:2] in ([], [b"400"], [b"403"], [b"413"], [b"431"], [b"408"], [b"501"])


def test_a_client_that_reads_nothing_is_given_up() -> None:
    async def never(message: Message) -> None:
        await asyncio.sleep(30.0)

    async def nothing() -> Message:
        return {"type": "http.request"}

    async def sent() -> None:
        await Exchange({}, nothing, never, Limits(seconds=0.05), Room(1)).send({"type": "http.response.body"})

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(sent())
    assert time.monotonic() - started < 10.0


def test_requests_in_one_go_are_answered_in_their_order(served: Served) -> None:
    content = body()
    one = head(f"Content-Length: {len(content)}") + content
    broken = head("Content-Length: 2") + b"[]"
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    heard = raw(served, one + broken + one + health)
    assert [part[:3] for part in heard.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200", b"200"]


def test_an_image_in_another_format_than_the_web_has_is_not_opened(served: Served) -> None:
    image = engines.image(1)

    def answer(format: str) -> httpx2.Response:
        part = {"type": "image_url", "image_url": {"url": uri(image, format)}}
        return post(served, body(messages=[{"role": "user", "content": [part]}]))

    for format in ("JPEG", "WEBP", "BMP"):
        assert answer(format).status_code == 200, format
    for format in ("EPS", "PPM"):
        refused = answer(format)
        assert refused.status_code == 400 and "PNG" in refused.json()["error"]["message"], format
