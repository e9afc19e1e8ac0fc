"""What one vision pass gives for one request. The head and the projector run on first use, and once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import LlavaProcessor

from llava_patch.vision import VisionPass
from safevlm.data import chat
from safevlm.model.safe_llava import SafeLlava
from safevlm.types import Request


@dataclass(frozen=True)
class Risk:
    """The head's probabilities by name."""

    level: Mapping[str, float]
    category: Mapping[str, float]


class Sight:
    def __init__(self, model: SafeLlava, vision: VisionPass | None, words: Tensor) -> None:
        """`words` (t,): ids of the request's prompt without image slots, for a head that reads text."""
        self._model = model
        self._words = words
        self.vision = vision

    @property
    def images(self) -> int:
        return 0 if self.vision is None else len(self.vision.patches)

    @cached_property
    def image_tokens(self) -> tuple[Tensor, ...]:
        """One (n, d) tensor per picture, for generation."""
        return () if self.vision is None else tuple(self._model.project(self.vision.patches))

    @cached_property
    def risk(self) -> Risk | None:
        if self.vision is None:
            return None
        words = self._words.unsqueeze(0)
        logits = self._model.judge(self.vision.patches, [self.images], words, torch.ones_like(words, dtype=torch.bool))
        taxonomy = self._model.config.taxonomy
        return Risk(
            level=_probabilities(logits.level[0], taxonomy.level_names),
            category=_probabilities(logits.category[0], taxonomy.category_names),
        )


def words_of(model: SafeLlava, processor: LlavaProcessor, request: Request, device: torch.device) -> Tensor:
    """(t,) ids of a request's prompt without its image slots: what a head that reads text is handed, as in training."""
    ids = torch.tensor(chat.prompt_ids(processor, request, model.slots), device=device)
    return ids[ids != model.config.image_token_id]


def look(model: SafeLlava, pixel_values: Tensor | None, images: Sequence[int], words: Sequence[Tensor]) -> list[Sight]:
    """One vision pass over a batch of requests → a Sight each. `images` says how many pictures each request has."""
    vision = model.look(pixel_values) if pixel_values is not None else None
    sights, start = [], 0
    for count, ids in zip(images, words, strict=True):
        own = vision[start : start + count] if vision is not None and count else None
        sights.append(Sight(model, own, ids))
        start += count
    return sights


def _probabilities(logits: Tensor, names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, logits.float().softmax(-1).tolist(), strict=True))
