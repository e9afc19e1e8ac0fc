"""What a run writes. Like safevlm.check.memory an estimate, in bytes.

A checkpoint: fp32 weights of ours, the LoRA (fp32), processor and config; and to resume, the optimiser: 8 bytes per
trained weight (Adam's moments), or under DeepSpeed 12 (moments and master) and the live weight once more.
On disk at once: `keep` checkpoints, one more while it is written, and `final`, which has no optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FP32 = 4
MOMENTS = 8
DEEPSPEED = 12


@dataclass(frozen=True)
class Need:
    checkpoint: int
    final: int
    total: int


def need(ours: int, trained: int, lora: bool, files: int, keep: int, deepspeed: bool, bytes_live: int) -> Need:
    """`ours`: safety weights; `trained`: weights that train (the LoRA's, when `lora`); `files`: bytes of the rest."""
    final = FP32 * ours + (FP32 * trained if lora else 0) + files
    checkpoint = final + trained * (DEEPSPEED + bytes_live if deepspeed else MOMENTS)
    return Need(checkpoint, final, checkpoint * (keep + 1) + final)


def standing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
