"""What one vision pass gives for one request. Tower, head and projector run on first use, and once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from llava_patch.classes import Processor
from llava_patch.vision import VisionPass
from safevlm.data import chat
from safevlm.model.precision import for_verdicts
from safevlm.model.safe_llava import SafeLlava
from safevlm.types import Request

FRAMES_PER_PASS = 16
"""Bounds the memory of an animation's vision passes."""


@dataclass(frozen=True)
class RiskProbabilities:
    """The head's probabilities by name."""

    level: Mapping[str, float]
    category: Mapping[str, float]


class VisionBatch:
    """One pass of the tower over the images of a batch, when somebody first asks for it."""

    def __init__(self, model: SafeLlava, pixel_values: Tensor) -> None:
        self._model = model
        self.pixel_values = pixel_values

    @cached_property
    def vision(self) -> VisionPass:
        return self._model.encode_images(self.pixel_values)


class LazyImageFeatures:
    def __init__(self, model: SafeLlava, vision_batch: VisionBatch | None, rows: slice, words: Tensor) -> None:
        """`rows`: this request's images among those of the batch. `words` (w,): ids of the request's words
        (`words_of`), for a head that reads text."""
        self._model = model
        self._vision_batch = vision_batch
        self._rows = rows
        self.words = words
        self.images = rows.stop - rows.start
        self.frames: tuple[Frame, ...] = ()
        """Of images with several frames or pages, all but the first one of each. The model never reads them."""

    @cached_property
    def pixel_values(self) -> Tensor | None:
        """(i, 3, h, w) of the request's images."""
        return self._vision_batch.pixel_values[self._rows] if self._vision_batch is not None and self.images else None

    @cached_property
    def vision(self) -> VisionPass | None:
        return self._vision_batch.vision[self._rows] if self._vision_batch is not None and self.images else None

    @cached_property
    def image_tokens(self) -> tuple[Tensor, ...]:
        """One (n, d) tensor per image, for generation."""
        return () if self.vision is None else tuple(self._model.project(self.vision.patches))

    @cached_property
    def risk(self) -> RiskProbabilities | None:
        if self.vision is None:
            return None
        words = self.words.unsqueeze(0)
        mask = torch.ones_like(words, dtype=torch.bool)
        with for_verdicts(words.device):
            logits = self._model.judge(self.vision.patches, [self.images], words, mask)
        taxonomy = self._model.config.taxonomy
        return RiskProbabilities(
            level=_probabilities(logits.level[0], taxonomy.level_names),
            category=_probabilities(logits.category[0], taxonomy.category_names),
        )


@dataclass(frozen=True)
class Frame:
    """A frame of an animation, or a page, as a request's only image."""

    name: str
    features: LazyImageFeatures


def encode_frames(
    model: SafeLlava, later: Sequence[Tensor | None], own: LazyImageFeatures, device: torch.device
) -> tuple[Frame, ...]:
    """Frames of a request's images behind the first of each, `FRAMES_PER_PASS` in a vision pass.

    `later`: per image (f, 3, h, w), or None; `own`: the request's features.
    """
    frames: list[Frame] = []
    for image, pixels in enumerate(later, 1):
        count = 1 if pixels is None else 1 + len(pixels)
        for start, part in enumerate(() if pixels is None else pixels.split(FRAMES_PER_PASS)):
            vision_batch = VisionBatch(model, part.to(device))
            for row in range(len(part)):
                name = f"frame {start * FRAMES_PER_PASS + row + 2} of {count} of image {image}"
                frames.append(Frame(name, LazyImageFeatures(model, vision_batch, slice(row, row + 1), own.words)))
    return tuple(frames)


def words_of(processor: Processor, request: Request, device: torch.device) -> Tensor:
    """(w,) ids of a request's words, as the collator hands them to a head that reads text."""
    return torch.tensor(chat.question_ids(processor, chat.messages_of(request)), device=device)


def encode_images(
    model: SafeLlava, pixel_values: Tensor | None, images: Sequence[int], words: Sequence[Tensor]
) -> list[LazyImageFeatures]:
    """Features for each request of a batch; they share one vision pass. `images`: images of each request."""
    vision_batch = VisionBatch(model, pixel_values) if pixel_values is not None else None
    ends = list(accumulate(images))
    rows = [slice(end - count, end) for count, end in zip(images, ends, strict=True)]
    return [LazyImageFeatures(model, vision_batch, own, ids) for own, ids in zip(rows, words, strict=True)]


def _probabilities(logits: Tensor, names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, logits.float().softmax(-1).tolist(), strict=True))
