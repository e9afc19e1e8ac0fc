"""The vision encoder over image files, batch by batch: what is computed before training, or in place of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from llava_patch.vision import VisionPass
from safevlm.data.pixels import open_fitting, read_images
from safevlm.model.loading import Loaded


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
