"""What an image looks like inside the model: one vector per image in each of four spaces, from one vision pass.

    patches   mean of the tower's patch features that LLaVA's projector reads: the original features
    cls       CLS token of the same layer, which LLaVA throws away
    safety    mean of the safety projector's output: the safety features
    head      what both read-outs of the safety head read: its attention's output

The trap: several images of one request are averaged; a head that reads text gives the vector of image and words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safevlm.analysis import detection
from safevlm.analysis.labelled_images import LabelledImage
from safevlm.defenses import Defense
from safevlm.model.image_features import LazyImageFeatures
from safevlm.model.loading import Loaded
from safevlm.types import Request, Verdict

SPACES = {
    "patches": "original: mean of patch features",
    "cls": "original: CLS of the same layer",
    "safety": "safety projector: mean of its output",
    "head": "safety head: input of its read-outs",
}
ORIGINAL = ("patches", "cls")


@dataclass(frozen=True)
class Features:
    """Vectors and verdicts of the same images, in the same order."""

    spaces: dict[str, NDArray[np.float32]]
    """(n, width) by name of the space."""
    verdicts: list[Verdict]


def extract(loaded: Loaded, guard: Defense, images: Sequence[LabelledImage], batch_size: int = 32) -> Features:
    """All spaces of every image, and what the head says of it."""
    detection.needs_head(loaded)
    with _listening(loaded.safe_llava) as heard:

        def keep(request: Request, features: LazyImageFeatures) -> tuple[dict[str, NDArray[np.float32]], Verdict]:
            verdict = guard.detect(request, features)
            _ = features.risk  # the head has run by now, whatever the detector asked for
            if features.vision is None:
                raise ValueError(f"{request.id}: no image, and so no features")
            patches = features.vision.patches
            own = {
                "patches": patches if isinstance(patches, Tensor) else torch.cat(list(patches)),
                "safety": heard["safety"][features.rows],
                "head": heard["head"][features.row],
            }
            cls = getattr(features.vision, "cls", None)
            own |= {} if cls is None else {"cls": cls}
            return {name: _mean(own[name]) for name in SPACES if name in own}, verdict

        kept = detection.detect_all(loaded, images, keep, batch_size, "features")
    spaces = {name: np.stack([vectors[name] for vectors, _ in kept]) for name in kept[0][0]} if kept else {}
    return Features(spaces, [verdict for _, verdict in kept])


@contextmanager
def _listening(model: Any) -> Iterator[dict[str, Tensor]]:
    """What the safety projector and the head's pooling gave last: of all images, and of all requests, of a batch."""
    heard: dict[str, Tensor] = {}

    def projected(_: Any, inputs: Any, output: Tensor) -> None:
        heard["safety"] = output

    def pooled(_: Any, inputs: tuple[Tensor]) -> None:
        heard["head"] = inputs[0]

    projector, head = model.safety_projector, model.safety_head
    if projector is None or head is None:
        raise ValueError("a model without a safety head has no features of it")
    handles = [
        projector.register_forward_hook(projected),
        head.level.register_forward_pre_hook(pooled),
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _mean(vectors: Tensor) -> NDArray[np.float32]:
    """(…, width) → (width,)."""
    return vectors.float().reshape(-1, vectors.shape[-1]).mean(0).cpu().numpy()
