"""`--bench`: how fast the audit is beside the bare vision tower, on the same images in the same run.

| row         | what is timed, per image                                                                      |
|-------------|--------------------------------------------------------------------------------------------------|
| `tower`     | the tower's forward on pixels that are ready                                                     |
| `judge`     | tower, safety projector, head and softmax on the same pixels                                     |
| `read tower`| reading, decoding, preparing, digests and fingerprint in threads, and the tower's forward        |
| `audit`     | the same with tower, projector, head and softmax: the scan, without writing the shard            |

Rounds alternate, so that a busy machine slows all rows alike; medians are compared.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from safevlm.analysis.audit.images import read_ahead
from safevlm.analysis.audit.plan import ShardPlan
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.scan import judge

ROUNDS = 5
MOST = 2_048
"""Images that are timed; their pixels are in memory."""


def bench(plan: ShardPlan, classifier: RiskClassifier, *, batch_size: int, workers: int) -> dict[str, Any]:
    """Images per second of every row of the table above, and the ratios to the tower."""
    placed = list(itertools.islice(plan.items(range(plan.shards)), MOST))

    def read() -> Any:
        return read_ahead(placed, classifier.processor, workers)

    readable = [image.pixels for image in read() if image.pixels is not None]
    batches = [readable[start : start + batch_size] for start in range(0, len(readable), batch_size)]
    rows: dict[str, Callable[[], None]] = {
        "tower": lambda: _tower(classifier, batches),
        "judge": lambda: _judge(classifier, batches),
        "read tower": lambda: _read_tower(classifier, read(), batch_size),
        "audit": lambda: _audit(classifier, read(), batch_size),
    }
    seconds = _timed(rows)
    speed = {name: round(len(readable) / median(found), 1) for name, found in seconds.items()}
    return {
        "images": len(readable),
        "rounds": ROUNDS,
        "batch_size": batch_size,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "per_second": speed,
        "judge_over_tower": round(speed["judge"] / speed["tower"], 3),
        "audit_over_read_tower": round(speed["audit"] / speed["read tower"], 3),
        "audit_over_tower": round(speed["audit"] / speed["tower"], 3),
    }


def lines(timed: Mapping[str, Any]) -> Iterator[str]:
    """The comparison for people."""
    speed = timed["per_second"]
    yield (
        f"pixels ready: {speed['judge']:,.0f} images/s, bare tower {speed['tower']:,.0f} "
        f"(ratio {timed['judge_over_tower']}); n {timed['images']:,}, batch {timed['batch_size']}"
    )
    yield (
        f"from the files: {speed['audit']:,.0f} images/s, with the bare tower {speed['read tower']:,.0f} "
        f"(ratio {timed['audit_over_read_tower']}; over the bare tower on ready pixels {timed['audit_over_tower']})"
    )


def _timed(rows: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(ROUNDS + 1):  # the first is for warming up
        for name, work in rows.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def _tower(classifier: RiskClassifier, batches: Sequence[Sequence[np.ndarray]]) -> None:
    for pixels in batches:
        classifier.tower(classifier.batch(pixels)).last_hidden_state[
            :, 0
        ].cpu()  # a copy back, so that a GPU is waited for


def _judge(classifier: RiskClassifier, batches: Sequence[Sequence[np.ndarray]]) -> None:
    for pixels in batches:
        classifier.judge(pixels)


def _read_tower(classifier: RiskClassifier, images: Any, batch_size: int) -> None:
    waiting: list[np.ndarray] = []
    for image in images:
        if image.pixels is not None:
            waiting.append(image.pixels)
        if len(waiting) == batch_size:
            _tower(classifier, [waiting])
            waiting = []
    if waiting:
        _tower(classifier, [waiting])


def _audit(classifier: RiskClassifier, images: Any, batch_size: int) -> None:
    for _ in judge(classifier, images, batch_size):
        pass
