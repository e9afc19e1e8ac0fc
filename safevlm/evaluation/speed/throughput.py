"""How many requests a second: one by one, in batches, and by several processes, side by side in one run.

Also counted, since speed that changes answers is worth nothing: on how many requests each way says what asking one by
one says. The trap is a busy or warming machine. So every block of requests is asked in every way before the next block,
the first way alternates, the model is loaded before the clock starts, and the ratio is the median over blocks.
Several processes divide the CPU threads of one among themselves, one each at least; `threads_per_process` says so.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safevlm.data.made_by import write_result
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.ask import blocks_of, load_engine
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.intervals import bootstrap_median
from safevlm.sharding import Share
from safevlm.types import Generation, Request, Sample, answered
from safevlm.usage import UsageError

FILE = "throughput.json"
FIRST = "one by one"
FAILURES = (ValueError, OSError, ImportError, RuntimeError)


@dataclass(frozen=True)
class Way:
    name: str
    processes: int
    batch_size: int


@dataclass(frozen=True)
class WorkerJob:
    """What a process is told to do."""

    requests: Sequence[Request]
    batch_size: int
    max_new_tokens: int
    threads: int


@dataclass(frozen=True)
class Setup:
    """What a process loads."""

    model: str
    defense: str
    samples: Sequence[Sample]
    policy: str | None
    base: str | None
    device: str
    seed: int


@dataclass(frozen=True)
class RequestBlock:
    """One block of requests, asked in every way."""

    seconds: dict[str, float]
    replies: dict[str, list[str]]


class WorkerShare:
    """A connection on which an error of the other side is an error here."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, job: WorkerJob) -> None:
        self.connection.send(job)

    def recv(self) -> Any:
        try:
            kind, content = self.connection.recv()
        except EOFError as error:
            raise ValueError("a process that held the model has died; is there memory for --processes?") from error
        if kind == "error":
            raise ValueError(content)
        return content


def throughput(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    out: str | Path,
    *,
    blocks: int = 8,
    block_size: int = 64,
    batch_size: int = 16,
    processes: int = 2,
    policy: str | Path | None = None,
    max_new_tokens: int | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """Measure and write `OUT/throughput.json`. One block more is asked first, uncounted, to warm up.

    A block should be a multiple of `batch_size` times `processes`, or the last batches are not full.
    """
    if min(blocks, block_size, batch_size, processes) < 1:
        raise UsageError("--blocks, --block-size, --batch-size and --processes: give 1 or more")
    asked = suite_of(suite)
    max_new_tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    chosen = blocks_of(load_suite(asked, Path(data)), blocks, block_size, data)
    samples = [sample for block in chosen for sample in block]
    setup = Setup(str(model), defense, samples, str(policy) if policy else None, base, device, seed)
    ways = ways_of(batch_size, processes)
    dealt = [[sample.request for sample in block] for block in chosen]
    with crew(setup, processes) as members:
        threads = members[0].recv()["threads"]
        for member in members[1:]:
            member.recv()
        counted = [
            _block(members, requests, _turned(ways, number), max_new_tokens, threads)
            for number, requests in enumerate(tqdm(dealt, desc="throughput", unit="block"))
        ][1:]
    table = {
        "model": str(model),
        "defense": defense,
        "policy": setup.policy,
        "suite": asked.name,
        "max_new_tokens": max_new_tokens,
        "blocks": blocks,
        "block_size": block_size,
        "threads": threads,
        "cpus": os.cpu_count(),
        "ways": {
            way.name: {"threads_per_process": _threads(threads, way)} | _summary(way, counted, dealt[1:], seed)
            for way in ways
        },
        "versions": run_file.versions(),
        "started": run_file.now(),
        "command": command,
    }
    write_result(Path(out) / FILE, table, {"model": model, "data": data, "policy": policy or ""})
    return table


def ways_of(batch_size: int, processes: int) -> list[Way]:
    several = [Way(f"batches of {batch_size}, {processes} processes", processes, batch_size)] if processes > 1 else []
    return [Way(FIRST, 1, 1), Way(f"batches of {batch_size}", 1, batch_size), *several]


def told(table: dict[str, Any]) -> Iterator[str]:
    """The result for people."""
    for name, row in table["ways"].items():
        ratio = row["times_faster"]
        same = row["same_replies"]
        yield (
            f"{name}: {row['requests_per_second']:.1f} requests/s, {ratio['value']:.2f} x [{ratio['low']:.2f}, "
            f"{ratio['high']:.2f}] n {ratio['n']} blocks, {same['count']} of {same['n']} replies as one by one"
        )


@contextmanager
def crew(setup: Setup, size: int) -> Iterator[list[WorkerShare]]:
    """Connections to processes that hold the model; each first says how it is set up, then answers jobs."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(size)]
    workers = [
        context.Process(target=_work, args=(there, setup, rank), daemon=True) for rank, (_, there) in enumerate(pairs)
    ]
    for worker, (_, there) in zip(workers, pairs, strict=True):
        worker.start()
        there.close()
    try:
        yield [WorkerShare(here) for here, _ in pairs]
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(connection: Connection, setup: Setup, rank: int) -> None:
    """The life of a process: load, then answer jobs until it is ended."""
    import torch

    try:
        engine = load_engine(
            setup.model,
            setup.defense,
            setup.samples,
            policy=setup.policy,
            device=_device(setup.device, rank),
            base=setup.base,
            seed=setup.seed,
        )
        connection.send(("ready", {"threads": torch.get_num_threads()}))
        while True:
            job: WorkerJob = connection.recv()
            torch.set_num_threads(job.threads)
            how = Generation(max_new_tokens=job.max_new_tokens)
            replies = answered(engine.reply_all(job.requests, how, batch_size=job.batch_size))
            connection.send(("replies", [reply.text for reply in replies]))
    except EOFError:  # the other side has gone
        return
    except FAILURES as error:
        connection.send(("error", str(error)))


def _device(device: str, rank: int) -> str:
    """A GPU per process where there are several."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank % torch.cuda.device_count()}"
    return device


def _block(
    members: Sequence[WorkerShare], requests: Sequence[Request], ways: Sequence[Way], max_new_tokens: int, threads: int
) -> RequestBlock:
    seconds: dict[str, float] = {}
    replies: dict[str, list[str]] = {}
    for way in ways:
        used = members[: way.processes]
        started = time.perf_counter()
        for rank, member in enumerate(used):
            own = Share(rank, way.processes).of(requests)
            member.send(WorkerJob(own, way.batch_size, max_new_tokens, _threads(threads, way)))
        texts = [member.recv() for member in used]
        seconds[way.name] = time.perf_counter() - started
        replies[way.name] = [texts[index % way.processes][index // way.processes] for index in range(len(requests))]
    return RequestBlock(seconds, replies)


def _threads(threads: int, way: Way) -> int:
    return max(1, threads // way.processes)


def _turned(ways: Sequence[Way], number: int) -> list[Way]:
    """The ways in their order, beginning with another one in every block."""
    start = number % len(ways)
    return [*ways[start:], *ways[:start]]


def _summary(way: Way, blocks: Sequence[RequestBlock], asked: Sequence[Sequence[Request]], seed: int) -> dict[str, Any]:
    ratios = [block.seconds[FIRST] / block.seconds[way.name] for block in blocks]
    low, high = bootstrap_median(ratios, seed)
    other = [
        request.id
        for block, requests in zip(blocks, asked, strict=True)
        for request, mine, first in zip(requests, block.replies[way.name], block.replies[FIRST], strict=True)
        if mine != first
    ]
    requests, seconds = sum(map(len, asked)), sum(block.seconds[way.name] for block in blocks)
    return {
        "processes": way.processes,
        "batch_size": way.batch_size,
        "requests_per_second": requests / seconds,
        "seconds": seconds,
        "times_faster": {"value": statistics.median(ratios), "low": low, "high": high, "n": len(ratios)},
        "same_replies": {"count": requests - len(other), "n": requests, "other": other},
    }
