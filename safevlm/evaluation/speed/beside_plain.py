"""What a guard costs over transformers' own `generate` on the same weights: first token and whole answer.

| way         | what it is                                                                              |
|-------------|-----------------------------------------------------------------------------------------|
| plain       | transformers' processor and `LlavaForConditionalGeneration.generate`                    |
| none        | `Engine` without a defense                                                              |
| safety-head | the head looks, and its policy lets everything pass: all answer the same                |
| safe-clip   | the same with the checkpoint's concept bank                                             |
| refused     | the head looks, and the policy answers in the model's place                             |

Every way gets the same open images in a round, and who goes first rotates. On a CPU the clock is the process's own
time with one thread, so that a busy machine counts less; on a GPU it is the wall's. Asked is what the head calls risky,
so that the last way can refuse it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from safevlm.data.images import open_image
from safevlm.data.made_by import write_result
from safevlm.defenses.bank import BANK_FILE
from safevlm.defenses.policy import Action
from safevlm.engine import Engine
from safevlm.evaluation.speed import plain
from safevlm.evaluation.speed.gpu_check import timing
from safevlm.evaluation.speed.plain import PLAIN, Ask
from safevlm.evaluation.suites import load_suite, suite_of
from safevlm.taxonomy import SAFE
from safevlm.training.bench import wait
from safevlm.types import Reply, Request

FILE = "guard.json"
REFUSED = "refused"
LOOKED_AT = 64
"""Requests that the head looks at together, in search of some that it calls risky."""
PARTS = {"first_token": "first token", "answer": "whole answer"}
ROUNDS_PER_BATCH = 6
"""Rounds of one request for each round of a batch."""


def beside_plain(
    suite: str,
    data: str | Path,
    model: str | Path,
    out: str | Path,
    n: int = 60,
    *,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    partial: bool = False,
    device: str = "auto",
    base: str | None = None,
) -> dict[str, Any]:
    """Measures, and writes `OUT/guard.json`. `n`: rounds of one request; of `batch_size` requests a sixth of them.

    ValueError: a checkpoint without a head, or one that calls none of the suite's images risky.
    """
    asked = suite_of(suite)
    tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = Engine.load(model, defense="safety-head", device=device, base=base)
        engines = _engines(engine)
        shown = [one.request for one in load_suite(asked, Path(data), partial) if len(one.request.images) == 1]
        requests = risky(engines[REFUSED], shown, batch_size)
        ways = {PLAIN: plain.asking(plain.stock_of(engine.loaded.safe_llava), engine.processor, engine.device)}
        ways |= {name: plain.asking_engine(one, refuses=name == REFUSED) for name, one in engines.items()}
        batches = {
            str(size): _measured(ways, requests, size, rounds, tokens, engine.device)
            for size, rounds in ((1, n), (batch_size, max(3, n // ROUNDS_PER_BATCH)))
        }
    finally:
        torch.set_num_threads(threads)
    table = {
        "model": str(model),
        "suite": asked.name,
        "max_new_tokens": tokens,
        "clock": "wall" if engine.device.type == "cuda" else "CPU of one thread",
        "batches": batches,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    write_result(Path(out) / FILE, table, {"model": model, "data": data})
    return table


def told(table: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    for size, batch in table["batches"].items():
        for part, title in PARTS.items():
            for name, one in batch[part].items():
                if name == PLAIN:
                    continue
                ratio = one["ratio"]
                yield (
                    f"batch of {size}, {title}, {name}: {ratio['value']:.3f} x [{ratio['low']:.3f}, "
                    f"{ratio['high']:.3f}] plain, n {ratio['n']}, {100 * batch['same_as_plain'][name]:.0f} % same text"
                )


def risky(engine: Engine, requests: Sequence[Request], count: int) -> list[Request]:
    """At least `count` requests that this engine refuses, repeated where there are fewer, with their images open.

    ValueError: it refuses none.
    """
    found: list[Request] = []
    for start in range(0, len(requests), LOOKED_AT):
        some = requests[start : start + LOOKED_AT]
        found += [one for one, told in zip(some, engine.decide_all(some), strict=True) if isinstance(told, Reply)]
        if len(found) >= count:
            break
    if not found:
        raise ValueError(f"the head calls none of {len(requests)} images risky; name a suite with some that are")
    opened = [_with_open_images(one) for one in found]
    return (opened * (1 + count // len(opened)))[: max(count, len(opened))]


def _with_open_images(request: Request) -> Request:
    """The same about open images."""
    return Request(request.text, tuple(map(open_image, request.images)), request.id, request.history, request.system)


def _engines(engine: Engine) -> dict[str, Engine]:
    levels = [name for name in engine.taxonomy.level_names if name != SAFE]

    def policy(action: Action) -> dict[str, Any]:
        return {"levels": dict.fromkeys(levels, action)}

    folders = (engine.loaded.path, engine.loaded.base)
    has_bank = any((folder / "defenses" / BANK_FILE).is_file() for folder in folders)
    return {
        "none": engine.behind("none"),
        "safety-head": engine.behind("safety-head", policy("allow")),
        **({"safe-clip": engine.behind("safe-clip", policy("allow"))} if has_bank else {}),
        REFUSED: engine.behind("safety-head", policy("refuse")),
    }


def _measured(
    ways: Mapping[str, Ask], requests: Sequence[Request], size: int, rounds: int, tokens: int, device: torch.device
) -> dict[str, Any]:
    clock = _clock(device)
    names = list(ways)
    seconds: dict[str, dict[str, list[float]]] = {part: {name: [] for name in names} for part in PARTS}
    same: dict[str, list[bool]] = {name: [] for name in names}
    for turn in tqdm(range(-1, rounds), desc=f"batch of {size}", unit="round"):  # the first one warms up
        start = (turn + 1) * size
        asked = [requests[(start + index) % len(requests)] for index in range(size)]
        shift = turn % len(names)
        for part, new in (("first_token", 1), ("answer", tokens)):
            texts = {}
            for name in (*names[shift:], *names[:shift]):
                started = clock()
                texts[name] = ways[name](asked, new)
                taken = clock() - started
                if turn >= 0:
                    seconds[part][name].append(taken)
            if part == "answer":
                for name in names:
                    same[name] += [mine == theirs for mine, theirs in zip(texts[name], texts[PLAIN], strict=True)]
    return {
        **{part: timing.over(seconds[part], PLAIN) for part in PARTS},
        "same_as_plain": {name: sum(own) / len(own) for name, own in same.items()},
    }


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.process_time

    def wall() -> float:
        wait(device)
        return time.perf_counter()

    return wall
