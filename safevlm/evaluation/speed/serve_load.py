"""How many requests a second a server answers to many clients at once, beside one client, in one run.

The server is a process of its own, asked over HTTP as by anybody. Also counted, since speed that mixes answers up is
worth nothing: how many of the answers are those that one client gets. The trap is a busy or warming machine. So every
block of requests is asked in both ways before the next block, the first way alternates, one block is asked before the
clock starts, and the ratio is the median over blocks.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.made_by import write_result
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.ask import blocks_of
from safevlm.evaluation.speed.running_server import Clients, body, running_server
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.intervals import bootstrap_median

FILE = "serve_load.json"
ALONE = "one client"


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
    base: str | None = None,
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
    flags = {"defense": defense, "batch": batch, "waiting": max(clients, batch), "device": device}
    flags |= {} if base is None else {"base": base}
    with running_server(model, **flags) as server:
        ways = [(ALONE, Clients(server.port, 1)), (many, Clients(server.port, clients))]
        for number, block in enumerate(bodies):
            answers: dict[str, list[str]] = {}
            for name, way in ways if number % 2 else reversed(ways):
                started = time.perf_counter()
                answers[name] = way.ask_all(block)
                seconds[name].append(time.perf_counter() - started)
            memory.append(server.resident_mib())
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
