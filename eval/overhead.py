"""What a defence costs: its time per benign request over the bare model's, paired in one run.

Both answer as users would, one request at a time, so a defence that makes answers shorter or longer is charged for
just that. Who goes first alternates, so that neither gains from a warm cache.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval import run_file
from eval.ask import load_engine
from eval.files import OVERHEAD, write_json
from eval.groups import groups_on
from eval.suites import load_suite, suite_of
from safevlm.types import Request

GROUP = "benign"
"""The group that is timed where the suite has it; elsewhere, all groups of that side."""
WARM_UP = 3  # requests to each side before the clock counts
DRAWS = 2000  # bootstrap samples


def overhead(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    against: str | Path,
    out: str | Path,
    n: int = 60,
    *,
    policy: str | Path | None = None,
    max_new_tokens: int | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
    command: str = "",
    engines: tuple[Any, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure `model` behind `defense` against the bare `against`, and write `overhead.json`.

    The ratio is the median of the paired ratios, its interval a seeded 95 % bootstrap. `engines` stands in for the
    loaded (defended, bare) pair.
    """
    max_new_tokens = suite_of(suite).max_new_tokens if max_new_tokens is None else max_new_tokens
    groups = timed_groups(suite)
    samples = [sample for sample in load_suite(suite, Path(data)) if sample.group in groups]
    if n < 1 or len(samples) <= WARM_UP:
        raise ValueError(f"{data}: {len(samples)} benign requests, --n {n}; give more than {WARM_UP} and at least 1")
    engines = engines or (
        load_engine(model, defense, samples, policy=policy, device=device, base=base, seed=seed),
        load_engine(against, "none", samples, device=device, seed=seed),
    )
    requests = [sample.request for sample in samples]
    for request in requests[:WARM_UP]:
        _times(engines, request, max_new_tokens, clock)
    pairs = []
    for index, request in enumerate(tqdm(requests[WARM_UP : WARM_UP + n], desc="overhead", unit="request")):
        pairs.append(_times(engines, request, max_new_tokens, clock, bare_first=index % 2 == 1))
    ratios = [defended / bare for defended, bare in pairs]
    low, high = bootstrap_interval(ratios, seed)
    table = {
        "value": statistics.median(ratios),
        "n": len(ratios),
        "low": low,
        "high": high,
        "model": str(model),
        "defense": defense,
        "policy": str(policy) if policy else None,
        "against": str(against),
        "seconds": {
            "defended": statistics.median(defended for defended, _ in pairs),
            "bare": statistics.median(bare for _, bare in pairs),
        },
        "versions": run_file.versions(),
        "started": run_file.now(),
        "command": command,
    }
    write_json(Path(out) / OVERHEAD, table)
    return table


def timed_groups(suite: str) -> tuple[str, ...]:
    """ValueError when the suite asks nothing benign."""
    benign = groups_on(suite, "benign")
    if not benign:
        raise ValueError(f"--suite {suite}: has no benign requests to time; use one that has, such as miniature")
    return (GROUP,) if GROUP in benign else benign


def bootstrap_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the median."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(DRAWS))
    return medians[round(0.025 * (DRAWS - 1))], medians[round(0.975 * (DRAWS - 1))]


def _times(
    engines: tuple[Any, Any],
    request: Request,
    max_new_tokens: int,
    clock: Callable[[], float],
    bare_first: bool = False,
) -> tuple[float, float]:
    """Seconds of the defended and of the bare model for one request."""
    seconds = [0.0, 0.0]
    for side in (1, 0) if bare_first else (0, 1):
        started = clock()
        engines[side].reply_all([request], max_new_tokens=max_new_tokens, batch_size=1)
        seconds[side] = clock() - started
    return seconds[0], seconds[1]
