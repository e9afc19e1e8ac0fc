"""Requests that nobody should send, over all routes: `python -m tests.serve.bad_requests --count 10000 [--seed 0]`.

With `--upstream` they go to a guard in front of a server that notes what it gets.

Right bodies are spoiled (types swapped, keys dropped, repeated or misspelt, deep, long and endless values, half
characters, bytes cut or of another encoding), images are cut, flipped and lied about, and what carries them is no HTTP.
The server may answer, or say in OpenAI's form what is wrong. Anything else is a finding: a 5xx without a logged cause,
an answer with a path or a traceback in it, no answer in SECONDS, more than MEMORY, a server that is unwell afterwards,
an image at the upstream that the guard has not looked at.
Nothing is random but by the seed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import json
import logging
import random
import re
import resource
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2

from tests.engine import engines
from tests.files.spoiling import RAW, STRANGE, changed, places, ways_to_spoil, with_part
from tests.serve.serving import NAME, Served, asked, listening, serving, uri
from tests.serve.upstreams import Recorder, Watching, fronting

SECONDS = 30.0
"""For one answer, on a machine that does other things too."""
MEMORY = 600 << 20
"""Bytes by which the process may grow."""
LIMITS: dict[str, Any] = {
    "body_bytes": 4 << 20,
    "image_bytes": 1 << 20,
    "held_bytes": 16 << 20,
    "pixels": 4_000_000,
    "images": 4,
    "body_seconds": 0.5,
    "seconds": SECONDS / 2,
}
OWN = re.escape(f"{Path(__file__).parents[3]}/")
"""The folder that holds the project, wherever that is."""
LEAKS = re.compile(rf"Traceback|File \"|site-packages|/home/|{OWN}|/tmp/|/usr/|safevlm/serve")
JSON = {"Content-Type": "application/json"}
MARK = "SPOILED-HERE"
KEPT = 200
"""Images that the guard has seen: of a request that is given up the upstream hears later."""


@dataclass(frozen=True)
class BadRequest:
    """What is sent, and what was done to it."""

    what: str
    path: str
    content: bytes
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    is_raw: bool = False
    """`content` is all that goes over the line."""


@dataclass(frozen=True)
class BadAnswer:
    """A finding."""

    request: BadRequest
    why: str


# --- right bodies -----------------------------------------------------------------------------------------------------


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """A route, and what it answers."""
    image = engines.image(1)
    part = {"type": "input_image", "image_url": uri(image), "detail": "auto"}
    chat: dict[str, Any] = {"model": NAME, "messages": [asked("What is it?", image)], "max_tokens": 2}
    turns = [
        {"role": "system", "content": "Be brief."},
        asked("a", image),
        {"role": "assistant", "content": "A cup.", "refusal": None},
        asked("b", engines.image(2)),
    ]
    more = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "moderation": {"model": "any", "policy": {"input": {"mode": "score"}}},
        "tools": [],
        "n": 1,
        "user": "u",
    }
    said = {"type": "output_text", "text": "A cup.", "annotations": []}
    return [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | more | {"messages": turns}),
        ("/v1/responses", {"model": NAME, "input": "What is it?", "max_output_tokens": 2}),
        (
            "/v1/responses",
            {
                "model": NAME,
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": [part, {"type": "input_text", "text": "a"}]},
                    {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [said]},
                    {"role": "user", "content": "b"},
                ],
                "stream": True,
                "text": {"format": {"type": "text"}},
                "moderation": {"model": "any"},
                "max_output_tokens": 2,
            },
        ),
        ("/v1/moderations", {"input": ["a", "b"]}),
        ("/v1/moderations", {"model": "m", "input": asked("a", image)["content"]}),
    ]


# --- spoiling ---------------------------------------------------------------------------------------------------------


def spoiled_value(rng: random.Random) -> BadRequest:
    path, right = rng.choice(bodies())
    what, value = changed(rng, copy.deepcopy(right))
    return BadRequest(what, path, json.dumps(value).encode("utf-8", "surrogatepass"))


def spoiled_word(rng: random.Random) -> BadRequest:
    """Something in a value's place that no writer of JSON writes."""
    path, right = rng.choice(bodies())
    word, place = rng.choice(RAW), rng.choice(list(places(right))[1:])
    text = json.dumps(with_part(right, place, MARK)).replace(f'"{MARK}"', word)
    return BadRequest(f"raw {word[:20]} {place}", path, text.encode())


def spoiled_bytes(rng: random.Random) -> BadRequest:
    path, right = rng.choice(bodies())
    content = json.dumps(right).encode()
    at = rng.randrange(len(content) + 1)
    what, content = rng.choice(
        [
            *ways_to_spoil(rng, content, at),
            ("a key twice", content.replace(b"{", b'{"model": 1, "model": 2, ', 1)),
            ("a key of a key twice", content.replace(b'"type"', b'"type": "x", "type"', 1)),
            ("many values", b"[" + b"0," * 1_000_000 + b"0]"),
            ("many keys", b"{" + b",".join(b'"%d":0' % key for key in range(50_000)) + b"}"),
            ("too large", b'{"model": "' + b"x" * (5 << 20) + b'"}'),
            ("long words", json.dumps({"model": "x" * 1_000_000} | {"messages": []}).encode()),
            ("zipped", zlib.compress(content)),
        ]
    )
    return BadRequest(what, path, content)


def spoiled_header(rng: random.Random) -> BadRequest:
    path, right = rng.choice(bodies())
    headers = rng.choice(
        [
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/json; charset=utf-16"},
            {"Content-Type": "application/json;" + ";" * 1_000},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            JSON | {"Host": "evil.example"},
            JSON | {"Host": "localhost:99999999999"},
            JSON | {"Host": "[::1"},
            JSON | {"Host": ""},
            JSON | {"Authorization": "Bearer " + "x" * 5_000},
            JSON | {"Authorization": "\x80\xff"},
            JSON | {"X-Forwarded-Host": "evil.example", "X-Original-URL": "/metrics"},
            JSON | {"Accept": "text/event-stream; q=nan"},
            {},
        ]
    )
    method = rng.choice(["POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
    path = rng.choice(
        [path, "/v1/models", "/v1/models/%ff", "/v1/models/../metrics", "//", "/openapi.json", "/%00", "/v1"]
    )
    content = json.dumps(right).encode() if method in ("POST", "PUT", "PATCH") else b""
    return BadRequest(f"{method} {path} {str(headers)[:80]}", path, content, method, headers)


def spoiled_line(rng: random.Random) -> BadRequest:
    """What is no HTTP, or HTTP that two servers read differently."""
    path, right = rng.choice(bodies())
    body = json.dumps(right).encode()
    start = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path.encode()
    whole = start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    at = rng.randrange(len(whole))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    what, content = rng.choice(
        [
            ("two lengths", start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body),
            ("length and chunks", start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks),
            ("a negative length", start + b"Content-Length: -1\r\n\r\n" + body),
            ("a length too short", start + b"Content-Length: 9\r\n\r\n" + body),
            ("a length too long", start + b"Content-Length: %d\r\n\r\n" % (len(body) + 9) + body),
            ("a huge length", start + b"Content-Length: %s\r\n\r\n" % (b"9" * 30)),
            ("chunks", start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks),
            ("broken chunks", start + b"Transfer-Encoding: chunked\r\n\r\n" + b"zz\r\n"),
            ("endless chunk", start + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n"),
            ("twice in a row", whole + whole),
            ("cut", whole[:at]),
            ("a flipped byte", whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]),
            ("a bare line feed", whole.replace(b"\r\n", b"\n", 3)),
            ("noise", rng.randbytes(200) + b"\r\n\r\n"),
            ("HTTP/0.9", b"GET /metrics\r\n\r\n"),
            ("HTTP/1.0", whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1)),
            ("another protocol", whole.replace(b"HTTP/1.1", b"HTTP/9.9", 1)),
            (
                "a wish to upgrade",
                b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            ),
            ("waits for go", start + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
        ]
    )
    return BadRequest(f"line: {what}", path, content, is_raw=True)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _lying_png(width: int, height: int) -> bytes:
    """A header of this size over a few bytes of pixels."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(b"\0" * 100)) + _chunk(b"IEND", b"")


def _bomb() -> bytes:
    """A small file of 1,900 x 2,000 grey pixels, and a text that is long once it is unpacked."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1_900, 2_000, 8, 0, 0, 0, 0))
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (8 << 20)))
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * (1_901 * 2_000)))
    return b"\x89PNG\r\n\x1a\n" + head + text + pixels + _chunk(b"IEND", b"")


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "PCX", "EPS")


def spoiled_image(rng: random.Random) -> BadRequest:
    path, right = rng.choice([each for each in bodies() if "data:" in json.dumps(each[1])])
    format, how = rng.choice(FORMATS), rng.choice(HOW)
    file = BytesIO()
    engines.image(rng.randrange(5)).save(file, format)
    encoded = base64.b64encode(_spoiled_file(rng, file.getvalue(), how)).decode()
    address = rng.choice(_addresses(encoded)) if how == "uri" else f"data:image/png;base64,{encoded}"
    text = re.sub(r'"data:[^"]*"', lambda _: json.dumps(address), json.dumps(right), count=rng.choice([1, 9]))
    return BadRequest(f"image {format} {how}", path, text.encode())


HOW = ("flip", "flip", "flip", "cut", "insert", "lie", "bomb", "noise", "swap", "whole", "empty", "uri")


def _spoiled_file(rng: random.Random, data: bytes, how: str) -> bytes:
    at, to = sorted(rng.sample(range(len(data)), 2))
    if how == "flip":
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            flipped[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(flipped)
    sizes = [0, 1, 30_000, 2**31 - 1]
    made = {
        "cut": data[:at],
        "insert": data[:at] + rng.randbytes(rng.randrange(1, 200)) + data[at:],
        "lie": _lying_png(rng.choice(sizes), rng.choice(sizes)),
        "noise": rng.randbytes(rng.randrange(2_000)),
        "swap": data[at:to] + data[:at] + data[to:],
        "empty": b"",
    }
    return _bomb() if how == "bomb" else made.get(how, data)


def _addresses(encoded: str) -> list[str]:
    return [
        encoded,
        f"data:,{encoded}",
        f"data:;base64,{encoded}",
        f"DATA:image/png;base64,{encoded}",
        f"data:image/png;base64,{encoded[:-1]}",
        f"data:image/png;base64,{encoded}\n",
        f"data:image/png;base64, {encoded}",
        f"data:image/png;base64,{encoded.replace('A', '%41')}",
        f"data:image/png;base64,{encoded.replace('+', '-')}",
        f"data:{'x' * 5_000};base64,{encoded}",
        f"data:text/html;base64,{encoded}",
        "data:image/png;base64,\u0661",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "/etc/passwd",
        "",
    ]


def strange_addition(rng: random.Random) -> BadRequest:
    """A field of OpenAI's that asks for what is not served, or with a strange value."""
    path, right = rng.choice(bodies())
    names = ["tools", "tool_choice", "n", "logit_bias", "response_format", "modalities", "audio", "prediction", "store"]
    names += [
        "metadata",
        "background",
        "previous_response_id",
        "conversation",
        "include",
        "text",
        "truncation",
        "model",
    ]
    names += ["stop", "seed", "temperature", "top_p", "max_tokens", "max_output_tokens", "stream"]
    names += [
        "stream_options",
        "moderation",
        "user",
        "uuid",
        "mm_processor_kwargs",
        "prompt_embeds",
        "messages",
        "input",
    ]
    names += ["instructions"]
    fields = {name: copy.deepcopy(rng.choice(STRANGE)) for name in rng.sample(names, rng.choice([1, 2, 5]))}
    return BadRequest(f"with {list(fields)}", path, json.dumps(right | fields).encode("utf-8", "surrogatepass"))


KINDS: tuple[tuple[Callable[[random.Random], BadRequest], int], ...] = (
    (spoiled_value, 6),
    (strange_addition, 4),
    (spoiled_image, 6),
    (spoiled_word, 2),
    (spoiled_bytes, 3),
    (spoiled_header, 2),
    (spoiled_line, 2),
)


def bad_request(rng: random.Random) -> BadRequest:
    makers, weights = zip(*KINDS, strict=True)
    return rng.choices(makers, weights)[0](rng)


# --- asking -----------------------------------------------------------------------------------------------------------


class Logged(logging.Handler):
    """How many errors the server has logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@dataclass(frozen=True)
class Behind:
    """What a guard in front of another server saw, and what that server got."""

    watching: Watching
    recorder: Recorder

    def is_seen(self) -> bool:
        """Whether all that went on since the last time was looked at."""
        given, seen = self.recorder.images(), self.watching.seen[:]
        self.recorder.bodies.clear()
        del self.watching.seen[: max(0, len(seen) - KEPT)]
        return set(given) <= set(seen)


@contextmanager
def served_by(upstream: bool) -> Iterator[tuple[Served, Behind | None]]:
    """`upstream`: the model is at another server."""
    engine = engines.engine("none")
    if not upstream:
        with serving(engine, **LIMITS) as served:
            yield served, None
        return
    behind = Behind(Watching(), Recorder())
    with listening(behind.recorder) as there, fronting(engine.behind(behind.watching), there, **LIMITS) as served:
        yield served, behind


@dataclass
class Asker:
    """Sends requests to a server, and judges what it says."""

    served: Served
    logged: Logged
    client: httpx2.Client
    behind: Behind | None = None

    def ask(self, request: BadRequest) -> tuple[str, str]:
        """The status or what came in its place, and why it is a finding; empty: it is none."""
        logged, began = self.logged.count, time.monotonic()
        try:
            status, said = self._line(request) if request.is_raw else self._http(request)
        except (httpx2.TimeoutException, TimeoutError):
            return "no answer", "no answer in time"
        except (httpx2.InvalidURL, httpx2.LocalProtocolError, UnicodeEncodeError):
            return "not sent", ""
        except (httpx2.HTTPError, OSError) as error:
            return "closed", f"closed without an answer: {type(error).__name__}"
        why = self._fault(status, said, self.logged.count > logged)
        if self.behind is not None and not self.behind.is_seen():
            why = "an image that nobody looked at went on"
        if time.monotonic() - began > SECONDS:
            why = f"took {time.monotonic() - began:.0f} s"
        return str(status), why

    def _http(self, request: BadRequest) -> tuple[int, bytes]:
        address = self.served.address + request.path
        headers = {name: value.encode("latin-1") for name, value in request.headers.items()}
        answer = self.client.request(request.method, address, content=request.content, headers=headers)
        return answer.status_code, b"" if request.method == "HEAD" else answer.content

    def _line(self, request: BadRequest) -> tuple[int, bytes]:
        """What is heard until the server closes; nothing at all is an answer to what is no HTTP."""
        host, _, port = self.served.address.removeprefix("http://").partition(":")
        heard = b""
        with socket.create_connection((host, int(port)), timeout=SECONDS) as line, contextlib.suppress(ConnectionError):
            line.sendall(request.content)
            line.shutdown(socket.SHUT_WR)
            while piece := line.recv(65_536):
                heard += piece
        if not heard:
            return 0, b""
        first, *more = heard.split(b"HTTP/1.1 ")[1:]  # several answers where several requests were read in it
        rest = first.partition(b"\r\n\r\n")[2]
        return int(first[:3]), rest if not more and b"application/json" in first else b""

    def _fault(self, status: int, said: bytes, is_logged: bool) -> str:
        text = said.decode("utf-8", "replace")
        if status >= 500:
            return "" if is_logged else f"{status} and no cause is logged: {text[:200]}"
        if leak := LEAKS.search(text):
            return f"says {leak[0]!r}: {text[:300]}"
        if status >= 400 and said and text.startswith("{"):
            error = json.loads(text).get("error")
            if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
                return f"{status} is not in OpenAI's form: {text[:200]}"
            if len(text) > 4_000:
                return f"{status} with {len(text)} characters"
        return ""

    def is_well(self) -> bool:
        """Whether the server answers a right request as it should."""
        path, right = bodies()[0]
        answer = self.client.post(self.served.address + path, json=right)
        health = self.client.get(f"{self.served.address}/healthz")
        return answer.status_code == 200 and "choices" in answer.json() and health.status_code == 200


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(count: int, seed: int = 0, every: int = 250, upstream: bool = False) -> tuple[Counter[str], list[BadAnswer]]:
    """Answers to `count` requests, and the findings among them; `every` so many the server must be well."""
    counts: Counter[str] = Counter()
    findings: list[BadAnswer] = []
    logged = Logged()
    logging.getLogger().addHandler(logged)
    logging.getLogger("uvicorn.error").addHandler(logged)
    try:
        with served_by(upstream) as (served, behind), httpx2.Client(timeout=SECONDS) as client:
            asker = Asker(served, logged, client, behind)
            assert asker.is_well(), "the server does not answer a right request"
            start = peak_bytes()
            for number in range(count):
                request = bad_request(random.Random(f"{seed}/{number}"))
                status, why = asker.ask(request)
                counts[status] += 1
                if why:
                    findings.append(BadAnswer(request, why))
                if (number + 1) % every == 0 and not asker.is_well():
                    findings.append(BadAnswer(request, "the server is not well any more"))
                    break
            counts["MiB more at the peak"] = (peak_bytes() - start) >> 20
            if peak_bytes() - start > MEMORY:
                findings.append(BadAnswer(request, f"{(peak_bytes() - start) >> 20} MiB more"))
    finally:
        logging.getLogger().removeHandler(logged)
        logging.getLogger("uvicorn.error").removeHandler(logged)
    return counts, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--upstream", action="store_true")
    options = parser.parse_args()
    counts, findings = run(options.count, options.seed, upstream=options.upstream)
    for one in findings:
        print(f"{one.request.method} {one.request.path}: {one.request.what[:150]}: {one.why}"[:600])
    print(dict(counts.most_common()), f"{len(findings)} findings in {options.count} requests")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
