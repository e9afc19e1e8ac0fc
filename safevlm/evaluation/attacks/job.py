"""What an attack gets: requests to change, a place for changed images, and the guarded model that it knows."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.data.atomic_write import atomic_file
from safevlm.data.images import open_image
from safevlm.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Effort:
    """How hard an attack tries. More of anything is a stronger attack."""

    steps: int = 40
    """Steps of a descent, from each start."""
    starts: int = 4
    """Starts of a descent: each weighs detectors against the answer in another way (`descent.WEIGHINGS`)."""
    queries: int = 1000
    """Questions per image, of attacks that have no gradient."""
    batch: int = 50
    """Images at once."""
    draws: int = 4
    """Draws of chance over which a gradient is averaged, where something is random."""


@dataclass(frozen=True)
class AttackJob:
    samples: Sequence[Sample]
    folder: Path
    """Of changed images."""
    seed: int
    engine: Any = None
    """The guarded model, a `safevlm.Engine`; attacks that are blind never touch it."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """By id of a request: what the unguarded model answers it, which is what the attacker wants to hear."""
    partners: Sequence[Path] = ()
    """Benign images, to stand beside harmful ones."""
    effort: Effort = Effort()
    strength: float = 0.0
    """Of the attack that is made, which says it (`Attack.make`)."""

    def chance(self, sample: Sample) -> random.Random:
        """The same draws for a sample whatever else is asked, and in whatever order."""
        return random.Random(f"{self.seed} {sample.request.id}")

    def place(self, sample: Sample) -> Path:
        """Of its changed image; ids may hold anything, file names may not."""
        plain = re.sub(r"[^\w.-]+", "_", sample.request.id)[:80]
        return self.folder / f"{plain}-{hashlib.sha256(sample.request.id.encode()).hexdigest()[:8]}.png"

    def keep(self, sample: Sample, image: Image) -> None:
        """Writes its changed image, whole or not at all."""
        with atomic_file(self.place(sample)) as partial:
            image.save(partial, "PNG")

    def waiting(self) -> list[Sample]:
        """Samples without a changed image yet."""
        return [sample for sample in self.samples if not self.place(sample).exists()]

    def changed(self) -> list[Sample]:
        """All samples, each about its changed image."""
        return [
            replace(sample, request=replace(sample.request, images=(self.place(sample), *sample.request.images[1:])))
            for sample in self.samples
        ]


def first_image(sample: Sample) -> Image:
    """The image that is attacked: a request's first. ValueError: it has none."""
    if not sample.request.images:
        raise ValueError(f"{sample.request.id}: has no image to attack")
    return open_image(sample.request.images[0])
