"""Records → one batch for a head that trains alone. The LLM is not run, so nobody reads prompt and answer.

input_ids                           (b, t)   image slots, padded with 0: how many images each row has
pixel_values                        (i, 3, h, w), in the order of the image slots, of images without known patches
patches, has_patches                (c, p, v) of images with known ones, and (i,) which they are; absent without any
labels                              (b, 1)   -100: no token is learned
safe_level, safe_type, ids, safety_words, safety_word_mask   as in `safevlm.data.collate`; words only for a head that
                                    reads text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safevlm.data import chat
from safevlm.data.augment import Augmentation
from safevlm.data.collate import IGNORED, open_fitting_of, verdicts, words
from safevlm.data.pixels import pixel_values
from safevlm.data.records import Record

KnownPatches = Callable[[Path], Tensor | None]
"""Image file → (p, v) of the vision tower; None: not known."""


@dataclass(frozen=True)
class HeadCollator:
    processor: chat.ChatProcessor
    slots: int
    """`<image>` tokens per image."""
    reads_text: bool
    """Whether the head does."""
    features: KnownPatches | None = None
    augmentation: Augmentation | None = None

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        return {
            "input_ids": self._slots(records),
            "labels": torch.full((len(records), 1), IGNORED),
            **verdicts(records),
            **(words(self.processor, records) if self.reads_text else {}),
            **self._images(records),
            "ids": [record.id for record in records],
        }

    def _slots(self, records: Sequence[Record]) -> Tensor:
        counts = torch.tensor([[len(record.images) * self.slots] for record in records])
        return (torch.arange(int(counts.max())) < counts).long() * self.processor.image_token_id

    def _images(self, records: Sequence[Record]) -> dict[str, Tensor]:
        shown = [(record, index) for record in records for index in range(len(record.images))]
        known = [self.features(record.images[index]) if self.features is not None else None for record, index in shown]
        found = [patches for patches in known if patches is not None]
        left = [
            open_fitting_of(*image, self.processor, self.augmentation)
            for image, patches in zip(shown, known, strict=True)
            if patches is None
        ]
        made = {"pixel_values": pixel_values(self.processor.image_processor, left)} if left else {}
        if found:
            made["patches"] = torch.stack(found)
            made["has_patches"] = torch.tensor([patches is not None for patches in known])
        return made
