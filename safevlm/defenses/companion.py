"""Detector: SafeCLIP with the eyes of a CLIP of its own, for models whose tower has no text side.

A folder beside the model holds a whole CLIP or SigLIP and its concept bank. The companion looks at the very images of a
request, every frame of an animation among them, each opened once more; the model's own tower is not asked. It costs one
pass of the companion's tower per image. The trap is the margin: CLIP's processor cuts the middle out of an image that
is no square, and most models read all of it. The companion scales the whole image to its square instead, as
LLaVA-NeXT does with its first tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.safe_clip import NAME as SAFE_CLIP
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.taxonomy import Taxonomy

if TYPE_CHECKING:
    from PIL.Image import Image

    from safevlm.defenses.bank import Bank

NAME = f"{SAFE_CLIP}:companion"
FOLDER = "companion"
"""In a checkpoint's folder of defenses."""
MAKE_IT = "safevlm embed --clip DIR --out DIR/safe_clip.safetensors"
"""`DIR`: the companion's folder."""


class CompanionDetector(SafeClipDetector):
    """SafeCLIP's rule on what another tower than the model's sees."""

    opens_images = True

    def __init__(self, bank: Bank, taxonomy: Taxonomy, tower: Any, processor: Any) -> None:
        """`tower`: of transformers, on the bank's device; `processor`: its image processor."""
        super().__init__(bank, taxonomy, name=NAME)
        self.tower = tower
        self.processor = uncropped(processor)

    def found(self, features: ImageFeatures) -> Sequence[Sequence[float]]:
        return features.per_opened(self.look_at)

    def look_at(self, images: Iterator[Image]) -> list[list[float]]:
        """Probabilities of every image, in the bank's order; RGB images."""
        import torch

        from safevlm.backbones.text_space import TEXT_SIDES
        from safevlm.data.pixels import check_fits, pixel_values

        prepared = []
        for image in images:  # one at a time: images are large, and what the tower reads of them is small
            check_fits(self.processor, image, "the companion's view")
            prepared.append(pixel_values(self.processor, [image]))
        with torch.inference_mode():
            pixels = torch.cat(prepared).to(self.bank.texts.device)
            seen = TEXT_SIDES[self.tower.config.model_type].seen(self.tower, self.tower(pixels).last_hidden_state)
            found: list[list[float]] = self.bank.probabilities(seen).tolist()
        return found


def uncropped(processor: Any) -> Any:
    """The image processor, scaling a whole image to the square that it would have cut out of it. Changed in place."""
    if getattr(processor, "do_center_crop", False):
        processor.size, processor.do_center_crop = processor.crop_size, False
    return processor


def _build(context: DefenseContext) -> Defense:
    from llava_patch.clip import load_tower  # late: it brings torch, and judges do without
    from safevlm.defenses.bank import BANK_FILE, read_bank

    facts, taxonomy = context.fitting(), context.policy.taxonomy
    beside = dataclasses.replace(context, folders=tuple(folder / FOLDER for folder in context.folders))
    file = beside.find(BANK_FILE, how=MAKE_IT)
    bank = read_bank(file, taxonomy)
    if bank.facts.feature != "pooled":
        raise ValueError(f"{file}: a companion's bank reads CLIP's own pooled vector; make it with --feature pooled")
    tower = load_tower(file.parent)
    bank.check_tower(tower.state_dict(), file)
    detector = CompanionDetector(bank.to(facts.device), taxonomy, tower.to(facts.device), _processor(file.parent))
    return Mixer(detector, context.policy)


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    from llava_patch.pretrained import from_folder

    try:
        return from_folder(AutoImageProcessor, folder)
    except (OSError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: its image processor (preprocessor_config.json) cannot be read: {told}") from error


ROW = DefenseRow(
    NAME, _build, "SafeCLIP by a CLIP of its own beside the model, for any tower", takes_file=True, reads_folder=True
)
