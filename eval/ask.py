"""Put a suite's questions to a model behind a defence: `replies.jsonl` and `run.json`.

A run that was stopped goes on where it was: replies are on disk after every batch, and ids that are there are not
asked again. The engine (and torch) is imported late, so that judging and reporting never load it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval import run_file
from eval.files import REPLIES, Row, append_rows, drop_half_written_line, read_replies
from eval.suites import load_suite
from safevlm.types import Reply, Sample, Verdict


def ask(
    suite: str,
    data: str | Path,
    model: str | Path,
    defense: str,
    out: str | Path,
    *,
    policy: str | Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 64,
    limit: int | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
    command: str = "",
    engine: Any = None,
) -> int:
    """Ask what is not answered yet and return how many that were. `engine` stands in for the loaded one."""
    samples = load_suite(suite, Path(data))
    folder = Path(out)
    record: dict[str, Any] = {
        "suite": suite,
        "data": str(data),
        "model": str(model),
        "defense": defense,
        "policy": str(policy) if policy else None,
        "base": base,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "digests": run_file.digests(samples, str(model), str(policy) if policy else None),
        "versions": run_file.versions(),
        "started": run_file.now(),
        "command": command,
    }
    samples = spread(samples, limit)
    record["n"] = len(samples)
    if (folder / run_file.FILE).exists():
        run_file.check_same_run(folder / run_file.FILE, record)
    waiting = _unanswered(samples, folder)
    if not waiting:
        return 0
    engine = engine or load_engine(model, defense, samples, policy=policy, device=device, base=base, seed=seed)
    record["dtype"] = str(engine.model.dtype)
    run_file.begin(folder, record)
    _ask_all(engine, waiting, folder, batch_size, max_new_tokens)
    return len(waiting)


def load_engine(
    model: str | Path,
    defense: str,
    samples: Sequence[Sample],
    *,
    policy: str | Path | None = None,
    device: str = "auto",
    base: str | None = None,
    seed: int = 0,
) -> Any:
    """The engine with the true labels at hand, which only the `oracle` defence looks at."""
    import torch

    from safevlm.engine import Engine

    torch.manual_seed(seed)
    truths = {
        sample.request.id: Verdict(level=sample.level, category=sample.category, source="oracle") for sample in samples
    }
    return Engine.load(model, defense=defense, policy=policy, device=device, base=base, truths=truths)


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, the groups in turn, in the order of the file."""
    if limit is None:
        return list(samples)
    if limit < 1:
        raise ValueError(f"--limit: {limit} samples are too few; give 1 or more, or leave it out")
    seen: Counter[str] = Counter()
    ranks = []
    for position, sample in enumerate(samples):
        ranks.append((seen[sample.group], position))
        seen[sample.group] += 1
    return [samples[position] for position in sorted(position for _, position in sorted(ranks)[:limit])]


def _unanswered(samples: Sequence[Sample], out: Path) -> list[Sample]:
    if not (out / REPLIES).exists():
        return list(samples)
    if not (out / run_file.FILE).exists():
        raise ValueError(f"{out / REPLIES} has no {run_file.FILE} beside it; choose another --out, or remove it")
    drop_half_written_line(out / REPLIES)
    answered = {row["id"] for row in read_replies(out)}
    return [sample for sample in samples if sample.request.id not in answered]


def _ask_all(engine: Any, samples: Sequence[Sample], out: Path, batch_size: int, max_new_tokens: int) -> None:
    if batch_size < 1:
        raise ValueError(f"--batch-size: {batch_size} is too small; give 1 or more")
    with tqdm(total=len(samples), desc="ask", unit="request") as bar:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            requests = [sample.request for sample in batch]
            replies = engine.reply_all(requests, max_new_tokens=max_new_tokens, batch_size=batch_size)
            append_rows(out / REPLIES, [_row(*pair, out) for pair in zip(batch, replies, strict=True)])
            bar.update(len(batch))


def _row(sample: Sample, reply: Reply, out: Path) -> Row:
    if reply.request.id != sample.request.id:
        raise ValueError(f"the engine answered {reply.request.id!r} where {sample.request.id!r} was asked")
    return {
        "id": sample.request.id,
        "suite": sample.suite,
        "group": sample.group,
        "request": {"text": sample.request.text, "images": [_seen_from(out, image) for image in sample.request.images]},
        "reply": reply.text,
        "refused_by": reply.refused_by,
        "prompt": reply.prompt,
        "verdict": _verdict_row(reply.verdict),
        "truth": {"category": sample.category, "level": sample.level, **sample.expected},
        "trace": list(reply.trace),
        "seconds": reply.seconds,
    }


def _verdict_row(verdict: Verdict) -> Row:
    return {
        "level": verdict.level,
        "category": verdict.category,
        "level_probabilities": {name: float(value) for name, value in verdict.level_probabilities.items()},
        "category_probabilities": {name: float(value) for name, value in verdict.category_probabilities.items()},
        "source": verdict.source,
        "error": verdict.error,
    }


def _seen_from(out: Path, image: Any) -> str:
    """The picture's path from the run's folder, so that data and runs may move together."""
    return Path(os.path.relpath(Path(image).resolve(), out.resolve())).as_posix()
