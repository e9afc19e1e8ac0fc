"""What a guard adds to a server, over the same server without one, in one run.

| way     | what is asked                                                                           |
|---------|-----------------------------------------------------------------------------------------|
| bare    | `safevlm serve --defense none`                                                          |
| guarded | the same behind a defense: a benign request, which it answers in the same words         |
| front   | the defense alone in front of the bare server (`--upstream`): the same request          |
| refused | the guarded server, which is asked to block what is flagged: a risky request            |

The servers are processes of their own, asked by one client over HTTP. In a round every way gets one request, and who
goes first rotates. Two clocks run: the wall's, and the CPU time that the servers took, which a busy machine moves less.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from safevlm.data.made_by import write_result
from safevlm.evaluation.runs.ask import spread
from safevlm.evaluation.speed.running_server import NAME, Clients, RunningServer, body, running_server, said
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.intervals import Interval, bootstrap_median
from safevlm.types import Sample

FILE = "serve_cost.json"
BARE, GUARDED, FRONT, REFUSED = "bare", "guarded", "front", "refused"
RATIOS = {
    "guarded over bare": (GUARDED, BARE),
    "front over direct": (FRONT, BARE),
    "refused over answered": (REFUSED, GUARDED),
}
DIFFERENT = 32
"""Requests of a kind; they take turns."""
TRIED = 8 * DIFFERENT
BLOCKED = {"moderation": {"model": "any", "policy": {"input": {"mode": "block"}}}}
"""Of a request that is refused where its image is flagged."""
Body = Mapping[str, Any]


def serve_cost(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    out: str | Path,
    *,
    n: int = 120,
    max_new_tokens: int | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures `n` rounds, and writes `OUT/serve_cost.json`.

    ValueError: a server that does not answer; no benign request that all answer alike, or no risky one that is refused.
    """
    asked = suite_of(suite)
    tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    samples = [sample for sample in load_suite(asked, Path(data)) if len(sample.request.images) == 1]
    with ExitStack() as running:
        start = {"device": device, **({} if base is None else {"base": base})}
        bare = running.enter_context(running_server(model, defense="none", **start))
        guarded = running.enter_context(running_server(model, defense=defense, **start))
        front = running.enter_context(
            running_server(model, defense=defense, upstream=bare.url, upstream_model=NAME, **start)
        )
        servers = {BARE: (bare,), GUARDED: (guarded,), FRONT: (front, bare), REFUSED: (guarded,)}
        clients = {name: Clients(asked_at[0].port, 1) for name, asked_at in servers.items()}
        benign = _first(
            (body(sample.request, tokens) for sample in _spread(samples, is_harmful=False)),
            lambda one: len({said(clients[name].ask(one)) for name in (BARE, GUARDED, FRONT)}) == 1,
            "benign request is answered alike by all servers",
        )
        risky = _first(
            (_blocked(body(sample.request, tokens)) for sample in _spread(samples, is_harmful=True)),
            lambda one: clients[REFUSED].ask(one)["refusal"] is not None,
            "risky request is refused",
        )
        given = {name: risky if name == REFUSED else benign for name in servers}
        clocks = _measured(servers, clients, given, n)
    table = {
        "model": str(model),
        "defense": defense,
        "suite": asked.name,
        "max_new_tokens": tokens,
        "requests": {"benign": len(benign), "risky": len(risky)},
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "clocks": {name: _table(seconds, seed) for name, seconds in clocks.items() if any(seconds[BARE])},
    }
    write_result(Path(out) / FILE, table, {"model": model, "data": data})
    return table


def told(table: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    for clock, one in table["clocks"].items():
        yield f"{clock}: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in one["seconds"].items())
        for name, ratio in one["ratios"].items():
            yield f"{clock}, {name}: {ratio['value']:.3f} x [{ratio['low']:.3f}, {ratio['high']:.3f}] n {ratio['n']}"


def _measured(
    servers: Mapping[str, Sequence[RunningServer]],
    clients: Mapping[str, Clients],
    bodies: Mapping[str, Sequence[bytes]],
    rounds: int,
) -> dict[str, dict[str, list[float]]]:
    """By clock and way, the seconds of each round. ValueError: a request that is not answered as it was before."""
    names = list(servers)
    clocks: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in names} for clock in ("wall", "cpu")}
    asked = zip(*(islice(cycle(bodies[name]), rounds) for name in names), strict=True)
    for turn, one in enumerate(tqdm(asked, total=rounds, unit="round")):
        of_turn = dict(zip(names, one, strict=True))
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            started, had = time.perf_counter(), _cpu(servers[name])
            message = clients[name].ask(of_turn[name])
            clocks["wall"][name].append(time.perf_counter() - started)
            clocks["cpu"][name].append(_cpu(servers[name]) - had)
            if (message["refusal"] is None) == (name == REFUSED):
                raise ValueError(f"what was timed is not what it should be: {name} gave {said(message)!r}")
    return clocks


def _table(seconds: Mapping[str, list[float]], seed: int) -> dict[str, Any]:
    return {
        "seconds": {name: median(own) for name, own in seconds.items()},
        "ratios": {
            name: _ratio([mine / theirs for mine, theirs in zip(seconds[over], seconds[under], strict=True)], seed)
            for name, (over, under) in RATIOS.items()
        },
    }


def _ratio(values: Sequence[float], seed: int) -> dict[str, float | int | None]:
    return Interval(median(values), len(values), *bootstrap_median(values, seed)).to_dict()


def _cpu(servers: Sequence[RunningServer]) -> float:
    return sum(server.cpu_seconds() for server in servers)


def _spread(samples: Sequence[Sample], *, is_harmful: bool) -> Sequence[Sample]:
    own = [sample for sample in samples if sample.is_harmful == is_harmful]
    return spread(own, min(len(own), TRIED)) if own else []


def _first(bodies: Iterator[bytes], holds: Callable[[bytes], bool], what: str) -> list[bytes]:
    """Some that hold. Each is asked here once, which warms up its servers."""
    found = list(islice(filter(holds, bodies), DIFFERENT))
    if not found:
        raise ValueError(f"no {what}; name a suite or a defense with some")
    return found


def _blocked(body: bytes) -> bytes:
    return json.dumps({**json.loads(body), **BLOCKED}).encode()
