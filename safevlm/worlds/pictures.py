"""Drawn scenes as one tensor."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

Scene = TypeVar("Scene")
FEW = 1_000
"""Scenes below which other processes are not worth their start."""
_drawing: list[Callable[[int], Any]] = []
"""What the processes draw with: they are copies of this one, so that nothing has to be sent to them."""


def pixels_of(scenes: Sequence[Scene], draw: Callable[[Scene], Image]) -> Tensor:
    """(scenes, 3, side, side), 0-255. Many scenes are drawn by as many processes as there are cores."""
    images = tqdm(_drawn(lambda row: np.array(draw(scenes[row])), len(scenes)), "images", len(scenes), mininterval=5)
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


def _drawn(draw: Callable[[int], Any], count: int) -> Iterator[Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if count < FEW or cores < 2:
        yield from map(draw, range(count))
        return
    _drawing.append(draw)
    try:
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            yield from pool.imap(_draw, range(count), chunksize=32)
    finally:
        _drawing.pop()


def _draw(row: int) -> Any:
    return _drawing[-1](row)
