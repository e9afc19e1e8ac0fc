"""`--bench`: how fast the audit is beside the bare vision tower, on the same pictures in the same run.

| row         | what is timed, per picture                                                                      |
|-------------|--------------------------------------------------------------------------------------------------|
| `tower`     | the tower's forward on pixels that are ready                                                     |
| `judge`     | tower, safety projector, head and softmax on the same pixels                                     |
| `read tower`| reading, decoding, preparing, digests and fingerprint in threads, and the tower's forward        |
| `audit`     | the same with tower, projector, head and softmax: the scan, without writing the part             |

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

from safevlm.analysis.audit.eye import Eye
from safevlm.analysis.audit.pictures import read_ahead
from safevlm.analysis.audit.plan import Plan
from safevlm.analysis.audit.scan import judge

ROUNDS = 5
MOST = 2_048
"""Pictures that are timed; their pixels are in memory."""


def bench(plan: Plan, eye: Eye, *, batch_size: int, workers: int) -> dict[str, Any]:
    """Pictures per second of every row of the table above, and the ratios to the tower."""
    placed = list(itertools.islice(plan.items(range(plan.shards)), MOST))

    def read() -> Any:
        return read_ahead(placed, eye.processor.image_processor, workers)

    readable = [picture.pixels for picture in read() if picture.pixels is not None]
    batches = [readable[start : start + batch_size] for start in range(0, len(readable), batch_size)]
    rows: dict[str, Callable[[], None]] = {
        "tower": lambda: _tower(eye, batches),
        "judge": lambda: _judge(eye, batches),
        "read tower": lambda: _read_tower(eye, read(), batch_size),
        "audit": lambda: _audit(eye, read(), batch_size),
    }
    seconds = _timed(rows)
    speed = {name: round(len(readable) / median(found), 1) for name, found in seconds.items()}
    return {
        "pictures": len(readable),
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
        f"pixels ready: {speed['judge']:,.0f} pictures/s, bare tower {speed['tower']:,.0f} "
        f"(ratio {timed['judge_over_tower']}); n {timed['pictures']:,}, batch {timed['batch_size']}"
    )
    yield (
        f"from the files: {speed['audit']:,.0f} pictures/s, with the bare tower {speed['read tower']:,.0f} "
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
def _tower(eye: Eye, batches: Sequence[Sequence[np.ndarray]]) -> None:
    for pixels in batches:
        eye.tower(eye.batch(pixels)).last_hidden_state[:, 0].cpu()  # a copy back, so that a GPU is waited for


def _judge(eye: Eye, batches: Sequence[Sequence[np.ndarray]]) -> None:
    for pixels in batches:
        eye.judge(pixels)


def _read_tower(eye: Eye, pictures: Any, batch_size: int) -> None:
    waiting: list[np.ndarray] = []
    for picture in pictures:
        if picture.pixels is not None:
            waiting.append(picture.pixels)
        if len(waiting) == batch_size:
            _tower(eye, [waiting])
            waiting = []
    if waiting:
        _tower(eye, [waiting])


def _audit(eye: Eye, pictures: Any, batch_size: int) -> None:
    for _ in judge(eye, pictures, batch_size):
        pass
