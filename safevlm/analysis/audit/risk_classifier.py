"""The half of a checkpoint that looks: vision tower, safety projector, head. The LLM's layers are never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safevlm.data.pixels import OneImage, Pixels, stack_images
from safevlm.model import families, loading
from safevlm.model.image_features import words_of
from safevlm.model.precision import for_verdicts
from safevlm.model.safety_modules import is_safety_name
from safevlm.taxonomy import Taxonomy
from safevlm.types import Request

QUESTION = "What is in the picture?"
"""What a head that reads text is asked about; it says nothing that could tip a verdict."""


@dataclass(frozen=True)
class RiskClassifier:
    """A model that judges images."""

    model: Any
    """One of ours, whatever the family."""
    processor: Any
    device: torch.device
    path: Path
    question: str = QUESTION

    @classmethod
    def load(
        cls, path: str | Path, *, device: torch.device, base: str | None = None, question: str = QUESTION
    ) -> RiskClassifier:
        """ValueError: no checkpoint, or one without a safety head."""
        loaded = loading.load(path, base=base, dtype=loading.default_dtype(device), lm=False)
        model = loaded.safe_llava
        if model.safety_head is None:
            raise ValueError(f"{loaded.path}: this checkpoint has no safety head; train one with a stage-1 recipe")
        model.to(device)
        return cls(model, loaded.processor, device, loaded.path, question)

    @property
    def taxonomy(self) -> Taxonomy:
        return self.model.config.taxonomy

    @property
    def reads_text(self) -> bool:
        return self.model.safety_head is not None and self.model.safety_head.reads_text

    @torch.inference_mode()
    def judge(self, pixels: Sequence[OneImage]) -> tuple[np.ndarray, np.ndarray]:
        """Images → probabilities, (n, categories) and (n, levels)."""
        logits = self.verdicts(self.batch(pixels))
        return tuple(one.float().softmax(-1).cpu().numpy() for one in logits)  # type: ignore[return-value]

    def batch(self, pixels: Sequence[OneImage]) -> Pixels:
        return stack_images(pixels).to(self.device)

    def verdicts(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Of every image the logits of category and level."""
        patches = self.model.encode_images(pixels).patches
        words, mask = self._words_of(len(patches))
        with for_verdicts(self.device):
            logits = self.model.judge(patches, [1] * len(patches), words, mask)
        return logits.category, logits.level

    def tower(self, pixels: Pixels) -> Any:
        """The bare vision tower on the same pixels, for comparison; of families other than LLaVA, their whole pass."""
        tower = self.model.tower
        return tower(pixels.to(tower.dtype)) if isinstance(pixels, Tensor) else self.model.encode_images(pixels)

    def digest(self) -> str:
        """Changes with any weight that a verdict depends on, and with how images are prepared."""
        found = hashlib.sha256(self.processor.image_processor.to_json_string().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if is_safety_name(name) or families.is_seen(self.model.config, name, words=self.reads_text):
                found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _words_of(self, images: int) -> tuple[Tensor | None, Tensor | None]:
        if not self.reads_text:
            return None, None
        words = self._words.expand(images, -1)
        return words, torch.ones_like(words, dtype=torch.bool)

    @cached_property
    def _words(self) -> Tensor:
        """(1, t): the question's prompt without image slots, as the engine hands it to the head."""
        request = Request(self.question, images=("",))
        return words_of(self.processor, request, self.device).unsqueeze(0)
