"""Every image once through the tower, in batches with a progress bar; the LLM is not even loaded.

Images are opened and scaled in threads while the tower works. What is to be kept of an image is read at once, so
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from safevlm import defenses
from safevlm.analysis.labelled_images import ImageSet, LabelledImage, truths_of
from safevlm.data.pixels import Pixels, join_images, open_fitting, read_images
from safevlm.data.threads import in_threads
from safevlm.defenses import Defense
from safevlm.defenses.policy import Policy
from safevlm.engine import setting_of
from safevlm.model import loading
from safevlm.model.image_features import LazyImageFeatures, encode_images, reopened, words_of
from safevlm.types import Request
from safevlm.usage import UsageError

Kept = TypeVar("Kept")


def load(path: str | Path, device: str = "auto", base: str | None = None) -> loading.Loaded:
    """A checkpoint without its LLM, on its device."""
    place = loading.default_device(device)
    loaded = loading.load(path, base=base, dtype=loading.default_dtype(place), lm=False)
    loaded.safe_llava.to(place)
    return loaded


def needs_head(loaded: loading.Loaded) -> None:
    """ValueError when there is no safety head to measure."""
    if loaded.safe_llava.safety_head is None:
        raise ValueError(f"{loaded.path}: this checkpoint has no safety head; train one with a stage-1 recipe")


def detector(loaded: loading.Loaded, name: str, policy: Policy, sets: Sequence[ImageSet]) -> Defense:
    """A defense that detects. ValueError: this one has no detector."""
    device = next(loaded.safe_llava.parameters()).device
    found = defenses.build(name, setting_of(loaded, policy, truths_of(sets), device))
    if type(found).detect is Defense.detect:
        raise UsageError(f"--defense {name}: it has no detector, there is nothing to measure")
    return found


def detect_all(
    loaded: loading.Loaded,
    images: Sequence[LabelledImage],
    keep: Callable[[Request, LazyImageFeatures], Kept],
    batch_size: int = 32,
    title: str = "detecting",
) -> list[Kept]:
    """What `keep` makes of every image's sight, in order."""
    model = loaded.safe_llava
    device = next(model.parameters()).device
    processor = loaded.processor

    def pixels(row: LabelledImage) -> tuple[LabelledImage, Pixels]:
        opened = [open_fitting(processor.image_processor, image) for image in row.request.images]
        return row, read_images(processor, [opened])

    kept: list[Kept] = []
    for batch in _batches(in_threads(pixels, images, title, len(images)), batch_size):
        requests = [row.request for row, _ in batch]
        words = [partial(words_of, loaded.processor, request, device) for request in requests]
        with torch.inference_mode():
            stack = join_images([own for _, own in batch]).to(device)
            sources = [source for request in requests for source in request.images]
            encoded_images = encode_images(model, stack, [len(own) for _, own in batch], words, reopened(sources))
            kept += [keep(request, features) for request, features in zip(requests, encoded_images, strict=True)]
    return kept


def _batches(items: Iterator[Kept], size: int) -> Iterator[list[Kept]]:
    while batch := list(islice(items, size)):
        yield batch
