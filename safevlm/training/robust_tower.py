"""A vision tower that says of changed images what it said of untouched ones (FARE, arXiv 2402.12336, section 3).

    loss = ‖φ(x) − φ₀(x)‖² + weight · ‖φ(x') − φ₀(x)‖²,   x' = argmax ‖φ(x') − φ₀(x)‖² within epsilon

φ₀ is the tower before, φ the one that trains; x is an image as it is or, where the recipe says so, as `data.augment`
made it. What is small beside epsilon, like a faint image, is otherwise taken for noise; and an attacker may start from
an image that is small, turned or faint already. Both terms are means over the features that anybody reads (those that
LLaVA selects, and those of the last layer, with their CLS), in units of φ₀'s variance over the first batch. No label
and no LLM is needed. Whatever reads the tower stays as it is: projector, LLM
and banks see nearly the features they know. An attack on the image then moves them less, so detectors and the model
behind them gain at once. It costs no time of an answer; what it costs in sharpness has to be measured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llava_patch import tower
from safevlm.config import AdversarialSettings, Recipe
from safevlm.data.head_collate import HeadCollator
from safevlm.data.records import Record, RecordError
from safevlm.model import loading, losses, stored
from safevlm.model.safe_llava import SafeLlava
from safevlm.training import trainer as trainers
from safevlm.training.adversarial import pixel_scale
from safevlm.training.pixel_attack import PixelAscent, PixelScale
from safevlm.training.trainer import SafeTrainer, whole

FILE = "tower.safetensors"
KEPT, CHANGED = "kept", "changed"
PIXELS = "pixel_values"
IMAGES = "has_image"


class TowerOutput(NamedTuple):
    kept: Tensor
    """(i,): how far features have moved of images that nobody attacked."""
    changed: Tensor
    """(i,): how far those of changed images are from what they were."""
    idle: None = None
    """As in `SafeLlavaOutput`; here every batch has a gradient."""


class TowerLearner(nn.Module):
    """The tower that trains beside the one it was. i images · p positions · v width"""

    tower: Any
    before: Any
    spread: Tensor
    """φ₀'s variance over the first batch; 0 before it."""

    def __init__(self, llava: Any) -> None:
        super().__init__()
        self.tower = tower.of(llava)
        self.before = copy.deepcopy(self.tower).eval()
        self.config = llava.config
        self.register_buffer("spread", torch.zeros(()))

    def train(self, mode: bool = True) -> TowerLearner:
        """Both stay as they are at inference."""
        return super().train(False)

    def features(self, seen_by: Any, images: Tensor) -> Tensor:
        """(i, 3, h, w) → (i, p, v): of the layers that LLaVA reads, and of the last one."""
        return tower.all_features(self.config, seen_by, images)

    def distances(self, images: Tensor, target: Tensor) -> Tensor:
        """(i,): mean squares, in units of the spread."""
        far: Tensor = (self.features(self.tower, images) - target).square().mean((1, 2)) / self.spread
        return far

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """(i, p, v): what the tower said of them before."""
        found = self.features(self.before, images)
        if not self.spread:
            self.spread.copy_(found.var(0).mean())
        return found

    def forward(self, kept: Tensor, changed: Tensor, target: Tensor) -> TowerOutput:
        """Images, the same after an attack, and what the tower said of the first before."""
        far = self.distances(torch.cat([kept, changed]), torch.cat([target, target]))
        return TowerOutput(far[: len(kept)], far[len(kept) :])


@dataclass(frozen=True)
class ImageCollator(HeadCollator):
    """Images alone, (i, 3, h, w), and a one for each."""

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        made = self._images(records)
        return {**made, IMAGES: torch.ones(len(made[PIXELS]), dtype=torch.long), "ids": [each.id for each in records]}


class TowerTrainer(SafeTrainer):
    labels = {KEPT: IMAGES, CHANGED: IMAGES}

    def __init__(self, *, settings: AdversarialSettings, scale: PixelScale, base: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.scale, self.base = settings, scale.to(self.args.device), base
        self.weights = {KEPT: 1.0, CHANGED: settings.weight}

    def _terms(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, losses.Term], TowerOutput]:
        images = inputs[PIXELS]
        learner: TowerLearner = self.accelerator.unwrap_model(self.model)
        target = learner.target(images)
        draw = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        start = torch.rand(images.shape, generator=draw) * 2 - 1
        step = self.settings.step_size or 2.5 * self.settings.epsilon / self.settings.steps
        ascent = PixelAscent(self.settings.epsilon, self.settings.steps, step)
        changed = ascent(images, start, self.scale, lambda tried: learner.distances(tried, target).sum())
        output = model(images, changed, target)
        count = torch.tensor(len(images))
        return {KEPT: losses.Term(output.kept.sum(), count), CHANGED: losses.Term(output.changed.sum(), count)}, output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The tower, recipe and run record; a finished run also the whole model around it, as a plain checkpoint."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run_folder)
        folder.mkdir(parents=True, exist_ok=True)
        learner: TowerLearner = self.accelerator.unwrap_model(self.model)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in learner.tower.state_dict().items()}
        stored.check_finite(weights, folder, "nothing was saved; start again with a lower optim.lr")
        save_file({**weights, "spread": learner.spread.cpu()}, folder / FILE, metadata={"format": "pt"})
        if not _internal_call:
            tower.write_with(self.base, weights, folder)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / FILE
        with whole(file.parent, "vision tower"), torch.no_grad():
            tensors = stored.read_tensors(file)
            learner: TowerLearner = self.accelerator.unwrap_model(self.model)
            learner.spread.copy_(tensors.pop("spread"))
            learner.tower.load_state_dict(tensors)


def check_model(model: Any, recipe: Recipe) -> None:
    """ValueError: a model that is not LLaVA's plain kind."""
    if not isinstance(model, SafeLlava):
        raise ValueError(
            f"stage {recipe.stage}: only LLaVA's kind of vision tower is trained, not that of {model.config.model_type}"
        )
    if model.safety_head is not None:
        raise ValueError(
            f"stage {recipe.stage}: {recipe.model.path} has a safety head, which knows the tower that it was trained "
            "on; train the tower of the plain model first, then stage 1 on the result"
        )


def check_records(records: Sequence[Record], recipe: Recipe) -> dict[str, Any]:
    """RecordError: a record without an image."""
    bare = next((record for record in records if not record.images), None)
    if bare is not None:
        raise RecordError(f"{bare.place}: has no image, and the vision tower learns from images alone; leave it out")
    return {}


def trainer(recipe: Recipe, loaded: loading.Loaded, records: Sequence[Record], **options: Any) -> SafeTrainer:
    """ValueError: pixels that cannot be attacked."""
    own = {"settings": recipe.adversarial, "scale": pixel_scale(loaded.processor), "base": loaded.path}
    collator = partial(ImageCollator, loaded.processor, loaded.safe_llava.slots, False, None)
    return trainers.trainer(recipe, loaded, records, TowerTrainer, collator, **own, **options)
