"""How many requests a second a server answers to many clients at once, beside one client, in one run.

The server is a process of its own, asked over HTTP as by anybody. Also counted, since speed that mixes answers up is
worth nothing: how many of the answers are those that one client gets. The trap is a busy or warming machine. So every
block of requests is asked in both ways before the next block, the first way alternates, one block is asked before the
clock starts, and the ratio is the median over blocks.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Any

from safevlm.data.data_uris import image_uri
from safevlm.data.images import open_image
from safevlm.data.made_by import write_result
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.ask import blocks_of
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.intervals import bootstrap_median
from safevlm.types import Request

FILE = "serve_load.json"
NAME = "loaded"
ALONE = "one client"
STARTS = 300.0
"""Seconds in which the server must answer."""
ANSWERS = 600.0
"""Seconds in which an answer must come."""
SIDE = 4096
"""Pixels; larger images are scaled down before they are sent."""


@dataclass
class Clients:
    """Clients of a server, each in a thread with a connection of its own."""

    port: int
    count: int
    _own: local = field(default_factory=local)

    def ask_all(self, bodies: Sequence[bytes]) -> list[str]:
        """Answers, in order."""
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(self._ask, bodies))

    def _ask(self, body: bytes) -> str:
        if not hasattr(self._own, "line"):  # once for each thread
            self._own.line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWERS)
        self._own.line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = self._own.line.getresponse()
        told = json.loads(answer.read())
        if answer.status != http.client.OK:
            raise ValueError(f"the server says {answer.status}: {told['error']['message']}")
        message = told["choices"][0]["message"]
        return str(message["content"] if message["content"] is not None else message["refusal"])


def serve_load(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    out: str | Path,
    *,
    clients: int = 64,
    blocks: int = 4,
    block_size: int = 128,
    batch: int = 64,
    max_new_tokens: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and write `OUT/serve_load.json`. One block more is asked first, uncounted, to warm up.

    ValueError: too few requests in the suite, or a server that does not answer.
    """
    asked = suite_of(suite)
    tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    chosen = blocks_of(load_suite(asked, Path(data)), blocks, block_size, data)
    bodies = [[body(sample.request, tokens) for sample in block] for block in chosen]
    many = f"{clients} clients"
    seconds: dict[str, list[float]] = {ALONE: [], many: []}
    same, memory = 0, list[float]()
    with server(model, defense, batch, max(clients, batch), device) as (process, port):
        ways = [(ALONE, Clients(port, 1)), (many, Clients(port, clients))]
        for number, block in enumerate(bodies):
            answers: dict[str, list[str]] = {}
            for name, way in ways if number % 2 else reversed(ways):
                started = time.perf_counter()
                answers[name] = way.ask_all(block)
                seconds[name].append(time.perf_counter() - started)
            memory.append(resident_mib(process.pid))
            if number:
                same += sum(one == other for one, other in zip(answers[ALONE], answers[many], strict=True))
    counted = {name: times[1:] for name, times in seconds.items()}
    ratios = [alone / together for alone, together in zip(counted[ALONE], counted[many], strict=True)]
    low, high = bootstrap_median(ratios, seed)
    requests = blocks * block_size
    table = {
        "model": str(model),
        "defense": defense,
        "suite": asked.name,
        "max_new_tokens": tokens,
        "clients": clients,
        "blocks": blocks,
        "block_size": block_size,
        "batch": batch,
        "cpus": os.cpu_count(),
        "requests_per_second": {name: requests / sum(times) for name, times in counted.items()},
        "seconds": counted,
        "times_faster": {"value": statistics.median(ratios), "low": low, "high": high, "n": len(ratios)},
        "same_answers": {"count": same, "n": requests},
        "server_mib_after_each_block": memory,
        "started": run_file.now(),
    }
    write_result(Path(out) / FILE, table, {"model": model, "data": data})
    return table


def told(table: dict[str, Any]) -> Iterator[str]:
    """The result for people."""
    for name, speed in table["requests_per_second"].items():
        yield f"{name}: {speed:.1f} requests/s"
    ratio, same = table["times_faster"], table["same_answers"]
    yield (
        f"{table['clients']} clients over one: {ratio['value']:.2f} x [{ratio['low']:.2f}, {ratio['high']:.2f}] "
        f"n {ratio['n']} blocks, {same['count']} of {same['n']} answers the same"
    )


def body(request: Request, max_new_tokens: int) -> bytes:
    """A request as a client sends it."""
    images = [image_uri(open_image(image), SIDE, quality=95) for image in request.images]
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    content = [*parts, {"type": "text", "text": request.text}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": NAME, "messages": messages, "max_tokens": max_new_tokens}).encode()


@contextmanager
def server(
    model: str | Path, defense: str, batch: int, waiting: int, device: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A running `safevlm serve`, and its port. ValueError: it ended, or does not answer."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    flags = {"model": model, "defense": defense, "name": NAME, "port": port, "batch": batch, "waiting": waiting}
    given = [word for name, value in {**flags, "device": device}.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([sys.executable, "-m", "safevlm", "serve", *given], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + STARTS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the server for {model} does not start; try: safevlm serve {' '.join(given)}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
        line.request("GET", "/healthz")
        return line.getresponse().status == http.client.OK
    return False


def resident_mib(pid: int) -> float:
    """Memory of a process that is in use, in MiB; 0 where the system does not tell."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return 0.0
