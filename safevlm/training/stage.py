"""One row of the table of stages: what trains, how, what it needs and what it leaves. Free of torch.

A stage trains in one of two ways: with transformers' Trainer (`add`, `trains`, `trainer`), or by a function of its own
(`fit`), which gets the records and the model and writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safevlm.config import Recipe, SafetyConfig

if TYPE_CHECKING:
    import torch

    from llava_patch.vision import VisionPass
    from safevlm.data.records import Record
    from safevlm.model.loading import Loaded
    from safevlm.model.safe_llava import SafeLlava
    from safevlm.training.trainer import SafeTrainer

Leaves = Literal["safety", "adapter", "files"]


@dataclass(frozen=True)
class StageRun:
    """What a stage's `fit` gets."""

    recipe: Recipe
    """`recipe.options` holds the stage's own settings."""
    loaded: Loaded
    """Model and processor; without the LLM's layers where the recipe has `loss.lm: 0`, unless the stage `runs_lm`."""
    records: Sequence[Record]
    """What to train on: exclusions, the clean draw and hints are done."""
    folder: Path
    """Where to write. It becomes `OUT/final` when `fit` returns; recipe.yaml and run.json are added."""
    device: torch.device

    def vision_passes(self, images: Sequence[Path], batch: int = 64) -> Iterator[tuple[Sequence[Path], VisionPass]]:
        """The vision encoder's output for image files, a batch at a time, with a progress bar; no gradient."""
        from safevlm.training.image_passes import image_passes

        yield from image_passes(self.loaded, images, self.device, batch)


def _all_of_it(model: SafeLlava, recipe: Recipe) -> Any:
    return model


def _nothing(name: str) -> bool:
    return False


def _reaches_all(name: str, recipe: Recipe) -> bool:
    return True


def _any_recipe(recipe: Recipe) -> None:
    return None


def _any_model(model: SafeLlava, recipe: Recipe) -> None:
    return None


def _any_records(records: Sequence[Record], recipe: Recipe) -> Mapping[str, Any]:
    return {}


def _through_llm(safety: SafetyConfig) -> bool:
    return True


def _trainer(recipe: Recipe, *given: Any, **options: Any) -> SafeTrainer:
    from safevlm.training import adversarial, trainer  # late: a row is free of torch

    return (adversarial if recipe.adversarial.epsilon else trainer).trainer(recipe, *given, **options)


@dataclass(frozen=True)
class Stage:
    """How a recipe of this stage trains; `stage: NAME` in the recipe."""

    name: str
    text: str
    """What it trains, in one line."""
    add: Callable[[SafeLlava, Recipe], Any] = _all_of_it
    """Puts on the model what it does not have yet, such as a LoRA; returns the model to train."""
    trains: Callable[[str], bool] = _nothing
    """Whether a parameter of this name trains, after `add`. All others are frozen."""
    reaches: Callable[[str, Recipe], bool] = _reaches_all
    """Whether a recipe's loss reaches such a parameter. What it does not reach is frozen too: several processes would
    wait for its gradient."""
    trainer: Callable[..., SafeTrainer] = _trainer
    """(recipe, loaded, records, **arguments of SafeTrainer) → the Trainer; it also saves."""
    fit: Callable[[StageRun], None] | None = None
    """Trains by itself, in one process, in the place of all three above."""
    leaves: Leaves = "files"
    """Kind of checkpoint it saves (`safevlm.model.checkpoint_folder`); files: its own, and nothing of the model."""
    trains_head: bool = False
    """The safety head changes: records need labels, and a calibration from before does not fit any more."""
    learns_through_llm: Callable[[SafetyConfig], bool] = _through_llm
    """Whether gradients pass the LLM of a model with these safety modules; its activations are then kept."""
    runs_lm: bool = False
    """It needs the LLM's layers also where the recipe has `loss.lm: 0`."""
    packages: tuple[str, ...] = ()
    """Distributions that it needs beside those of every training run."""
    reads: tuple[str, ...] = ()
    """Keys of a recipe that a training of its own makes use of: `adversarial.epsilon`, `data.augment`."""
    check_recipe: Callable[[Recipe], None] = _any_recipe
    """ValueError: settings that this stage cannot work with, and the fix."""
    check_model: Callable[[SafeLlava, Recipe], None] = _any_model
    """ValueError: a model that this stage cannot train with these settings, and the fix."""
    check_records: Callable[[Sequence[Record], Recipe], Mapping[str, Any]] = _any_records
    """RecordError: records that it cannot learn from. Returns counts for `run.json`."""
    defense: str = ""
    """Defense that uses what was learned; a `{file}` in it becomes the run's folder."""

    def check(self, recipe: Recipe) -> None:
        """ValueError: settings that this stage cannot work with, or would pass over, and the fix."""
        if self.fit is not None or self.trainer is not _trainer:
            for key, value in (
                ("adversarial.epsilon", recipe.adversarial.epsilon),
                ("data.augment", recipe.data.augment),
            ):
                if value and key not in self.reads:
                    raise ValueError(f"{key}: stage {self.name} has a training of its own, without it; leave it out")
        from safevlm.data import augment  # late: it opens images

        augment.check(recipe)
        self.check_recipe(recipe)

    @property
    def adds_lora(self) -> bool:
        return self.leaves == "adapter"
