"""What a defense costs on a benign request, over the bare model: three times, paired in one run, and passes counted.

Both answer as users would, one request at a time, so a defense that makes answers shorter or longer is charged for
just that. Who goes first alternates, so that neither gains from a warm cache. The traps: a GPU works on after the call
has returned, so the clock waits for it; and a defense that reviews whole answers shows its first token after the last.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safevlm.data.made_by import write_result
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.ask import load_engine
from safevlm.evaluation.runs.files import OVERHEAD
from safevlm.evaluation.runs.served import Served
from safevlm.evaluation.suites import Suite, load_suite, suite_of
from safevlm.intervals import bootstrap_median
from safevlm.types import Generation, Request, answered
from safevlm.usage import UsageError

WARM_UP = 3  # requests to each side before the clock counts
TITLES = {"prepare": "until the LLM starts", "first_token": "first token", "answer": "whole answer"}
"""What is timed. `prepare`: vision pass, detection and the prompt; a served model has none that could be seen."""
PASSES = {"tower": "images through the tower", "llm": "prompts through the LLM", "written": "tokens written"}
"""What is counted per request."""

Pair = tuple[float, float]
"""Of the defended and of the bare model."""


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
    partial: bool = False,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
    command: str = "",
    engines: tuple[Any, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure `model` behind `defense` against the bare `against`, and write `overhead.json`.

    Each ratio is the median of the paired ratios, its interval a seeded 95 % bootstrap; the outermost is that of the
    whole answer. `engines` stands in for the loaded (defended, bare) pair.
    """
    asked = suite_of(suite)
    max_new_tokens = asked.max_new_tokens if max_new_tokens is None else max_new_tokens
    groups = timed_groups(asked)
    samples = [sample for sample in load_suite(asked, Path(data), partial) if sample.group in groups]
    if n < 1 or len(samples) <= WARM_UP:
        raise ValueError(f"{data}: {len(samples)} benign requests, --n {n}; give more than {WARM_UP} and at least 1")
    engines = engines or (
        load_engine(model, defense, samples, policy=policy, device=device, base=base, seed=seed),
        load_engine(against, "none", samples, device=device, seed=seed),
    )
    requests = [sample.request for sample in samples]
    steps = _steps(engines, max_new_tokens)
    for request in requests[:WARM_UP]:
        for step in steps.values():
            _times(step, engines, request, clock)
    requests = requests[WARM_UP : WARM_UP + n]
    pairs: dict[str, list[Pair]] = {name: [] for name in steps}
    for index, request in enumerate(tqdm(requests, desc="overhead", unit="request")):
        for name, step in steps.items():
            pairs[name].append(_times(step, engines, request, clock, bare_first=index % 2 == 1))
    times = {name: _ratio(found, seed) for name, found in pairs.items()}
    table = times["answer"] | {
        "model": str(model),
        "defense": defense,
        "policy": str(policy) if policy else None,
        "against": str(against),
        "times": times,
        "passes": _passes(engines, requests, max_new_tokens),
        "versions": run_file.versions(),
        "started": run_file.now(),
        "command": command,
    }
    inputs = {"model": model, "against": against, "data": data, "policy": policy or ""}
    write_result(Path(out) / OVERHEAD, table, inputs)
    return table


def timed_groups(suite: Suite) -> tuple[str, ...]:
    """Groups whose requests are timed. ValueError when the suite asks nothing benign."""
    benign = suite.groups_on("benign")
    if not benign:
        raise UsageError(f"--suite {suite.name}: has no benign requests to time; use one that has, such as miniature")
    return suite.timed_groups or benign


def told(table: dict[str, Any]) -> Iterator[str]:
    """The result for people."""
    for name, one in table["times"].items():
        yield f"{TITLES[name]}: {one['value']:.3f} x [{one['low']:.3f}, {one['high']:.3f}], n {one['n']}"
    if extra := table["passes"].get("extra"):
        yield "more than the bare model: " + ", ".join(f"{extra[name]:+.2f} {PASSES[name]}" for name in PASSES)


@contextmanager
def counted(engine: Any) -> Iterator[Counter[str]]:
    """Counts, while it is open, what goes through the engine's tower and LLM; a batch of five is five."""
    from llava_patch import parts  # loads torch, which judging and reporting do without

    model = engine.loaded.safe_llava
    counts: Counter[str] = Counter()

    def tower(_: Any, words: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts["tower"] += len(words[0] if words else named["pixel_values"])

    def llm(_: Any, words: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next(one for one in (named.get("inputs_embeds"), named.get("input_ids"), *words) if one is not None)
        counts["llm" if given.shape[1] > 1 else "written"] += len(given)

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module, hook in ((parts.vision_tower(model), tower), (parts.language_model(model), llm))
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _steps(engines: tuple[Any, Any], max_new_tokens: int) -> dict[str, Callable[[Any, Request], None]]:
    """What is timed, by name."""

    def answer(engine: Any, request: Request) -> None:
        answered(engine.reply_all([request], Generation(max_new_tokens=max_new_tokens), batch_size=1))

    def first_token(engine: Any, request: Request) -> None:
        length = max_new_tokens if _reviews(engine) else 1
        answered(engine.reply_all([request], Generation(max_new_tokens=length), batch_size=1))

    def prepare(engine: Any, request: Request) -> None:
        with suppress(ValueError):  # the defense answers this request itself: then it is the time until it knows
            engine.encoded([request])

    loaded = not any(isinstance(engine, Served) for engine in engines)
    return ({"prepare": prepare} if loaded else {}) | {"first_token": first_token, "answer": answer}


def _reviews(engine: Any) -> bool:
    return not isinstance(engine, Served) and engine.defense.reviews


def _times(
    step: Callable[[Any, Request], None],
    engines: tuple[Any, Any],
    request: Request,
    clock: Callable[[], float],
    bare_first: bool = False,
) -> Pair:
    """Seconds of the defended and of the bare model for one request."""
    seconds = [0.0, 0.0]
    for side in (1, 0) if bare_first else (0, 1):
        started = clock()
        step(engines[side], request)
        _wait(engines[side])
        seconds[side] = clock() - started
    return seconds[0], seconds[1]


def _wait(engine: Any) -> None:
    """Until the GPU has done what it was told."""
    device = getattr(engine, "device", None)
    if getattr(device, "type", "") == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _ratio(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    ratios = [defended / bare for defended, bare in pairs]
    low, high = bootstrap_median(ratios, seed)
    return {
        "value": statistics.median(ratios),
        "n": len(ratios),
        "low": low,
        "high": high,
        "seconds": {
            "defended": statistics.median(defended for defended, _ in pairs),
            "bare": statistics.median(bare for _, bare in pairs),
        },
    }


def _passes(engines: tuple[Any, Any], requests: Sequence[Request], max_new_tokens: int) -> dict[str, Any]:
    """Per request, of both and the difference; apart from the clock. Empty where a server keeps them to itself."""
    if any(isinstance(engine, Served) for engine in engines):
        return {}
    sides = {}
    for side, engine in zip(("defended", "bare"), engines, strict=True):
        with counted(engine) as counts:
            for request in requests:
                answered(engine.reply_all([request], Generation(max_new_tokens=max_new_tokens), batch_size=1))
        sides[side] = {name: counts[name] / len(requests) for name in PASSES}
    return sides | {"extra": {name: sides["defended"][name] - sides["bare"][name] for name in PASSES}}
