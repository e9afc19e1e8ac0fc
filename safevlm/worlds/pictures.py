"""Drawn scenes as one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

Scene = TypeVar("Scene")


def pixels_of(scenes: Sequence[Scene], draw: Callable[[Scene], Image]) -> Tensor:
    """(scenes, 3, side, side), 0-255."""
    drawn = (np.array(draw(scene)) for scene in tqdm(scenes, "images", mininterval=5))
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in drawn])
