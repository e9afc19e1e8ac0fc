"""`safevlm serve` as a process of its own, asked over HTTP as by anybody, and what it costs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Any

from safevlm.data.data_uris import image_uri
from safevlm.data.images import open_image
from safevlm.types import Request

NAME = "measured"
"""By which the model is asked for."""
STARTS = 300.0
"""Seconds in which the server must answer."""
ANSWERS = 600.0
"""Seconds in which an answer must come."""
IDLE = 2.0
"""Seconds after which a line is opened anew: less than a server keeps it, so that none is closed while it is used."""
SIDE = 4096
"""Pixels; larger images are scaled down before they are sent."""


@dataclass(frozen=True)
class RunningServer:
    """A server that was started here."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """That all its threads have had since it began; 0 where the system does not tell."""
        with suppress(OSError):
            return time.clock_gettime(~self.pid << 3 | 2)  # Linux's clock of another process's CPU time
        return 0.0

    def resident_mib(self) -> float:
        """Memory in use, in MiB; 0 where the system does not tell."""
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        return 0.0


@dataclass
class Clients:
    """Clients of a server, each in a thread with a connection of its own."""

    port: int
    count: int
    _own: local = field(default_factory=local)

    def ask_all(self, bodies: Sequence[bytes]) -> list[str]:
        """Answers, in order."""
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(lambda body: said(self.ask(body)), bodies))

    def ask(self, body: bytes) -> dict[str, Any]:
        """The message that answers one body. ValueError: the server says that something is wrong."""
        if not hasattr(self._own, "line"):  # once for each thread
            self._own.line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWERS)
        elif time.monotonic() - self._own.used > IDLE:
            self._own.line.close()  # the next request opens it
        self._own.line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = self._own.line.getresponse()
        told = json.loads(answer.read())
        self._own.used = time.monotonic()
        if answer.status != http.client.OK:
            raise ValueError(f"the server says {answer.status}: {told['error']['message']}")
        message: dict[str, Any] = told["choices"][0]["message"]
        return message


def said(message: Mapping[str, Any]) -> str:
    """The words of an answer, or of a refusal."""
    return str(message["content"] if message["content"] is not None else message["refusal"])


def body(request: Request, max_new_tokens: int) -> bytes:
    """A request as a client sends it."""
    images = [image_uri(open_image(image), SIDE, quality=95) for image in request.images]
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    content = [*parts, {"type": "text", "text": request.text}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": NAME, "messages": messages, "max_tokens": max_new_tokens}).encode()


@contextmanager
def running_server(model: str | Path, **flags: object) -> Iterator[RunningServer]:
    """A running `safevlm serve --model MODEL --FLAG VALUE …`. ValueError: it ended, or does not answer."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    every = {"model": model, "name": NAME, "port": port, **flags}
    given = [word for name, value in every.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen([sys.executable, "-m", "safevlm", "serve", *given], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + STARTS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the server for {model} does not start; try: safevlm serve {' '.join(given)}")
            time.sleep(0.1)
        yield RunningServer(process.pid, port)
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
        line.request("GET", "/healthz")
        return line.getresponse().status == http.client.OK
    return False
