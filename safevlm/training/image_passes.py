"""The vision encoder over image files, batch by batch: what is computed before training, or in place of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from llava_patch.vision import VisionPass
from safevlm.config import Recipe
from safevlm.data.pixels import open_fitting, read_images
from safevlm.model import loading, zero3
from safevlm.model.loading import Loaded


def looking_model(recipe: Recipe, loaded: Loaded, device: torch.device) -> Loaded:
    """The model whose tower looks, on the device. ZeRO-3 has cut the live one up: it cannot run before training."""
    if zero3.is_planned():
        with zero3.off():
            loaded = loading.load(recipe.model.path, base=recipe.model.base, dtype=loaded.safe_llava.dtype, lm=False)
    if next(loaded.safe_llava.tower.parameters()).device != device:
        loaded.safe_llava.to(device)  # all of it: of some families one pass goes through tower and projector
    return loaded


def image_passes(
    loaded: Loaded, images: Sequence[Path], device: torch.device, batch: int, title: str = "encoding images"
) -> Iterator[tuple[Sequence[Path], VisionPass]]:
    """(paths, their `VisionPass`) for all images in order; batches depend on nothing but `batch`. ImageError."""
    starts = range(0, len(images), batch)
    for paths in tqdm([images[start : start + batch] for start in starts], title, leave=False):
        processor = loaded.processor
        pixels = read_images(processor, [[open_fitting(processor.image_processor, path)] for path in paths])
        with torch.inference_mode():
            yield paths, loaded.safe_llava.encode_images(pixels.to(device))
