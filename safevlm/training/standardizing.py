"""Before stage 1: what the training images' patches are like, for a safety projector that reads them standardised.

Up to 512 images, drawn with the run's seed. The first process takes the numbers and tells the others; a run that goes
on reads them from its checkpoint, and a checkpoint that has some keeps them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments

from safevlm.config import Recipe
from safevlm.data.records import Record
from safevlm.model import stored, zero3
from safevlm.model.checkpoint_folder import SAFETY_FILE
from safevlm.model.loading import Loaded
from safevlm.model.standardizer import statistics
from safevlm.training import processes
from safevlm.training.image_passes import image_passes, looking_model
from safevlm.training.trainer import whole

IMAGES = 512
"""Of a few hundred images both numbers of a channel are known to some hundredths of its spread."""
BATCH = 16
"""Images per forward."""
NAME = "safety_standardizer."


def settle(
    recipe: Recipe,
    loaded: Loaded,
    records: Sequence[Record],
    arguments: TrainingArguments,
    checkpoint: str | None,
) -> Loaded:
    """The model, its standardiser settled; `checkpoint`: what the run goes on from. All processes must call.

    A model without a standardiser, or with one that has seen images, comes back as it is.
    ValueError: an image cannot be read, or no record has any.
    """
    standardizer = loaded.safe_llava.safety_standardizer
    if standardizer is None or standardizer.has_seen:
        return loaded
    if checkpoint:
        found = _kept(Path(checkpoint))
    else:
        rank, world = arguments.process_index, arguments.world_size
        found = processes.agree(rank, world, lambda: _taken(recipe, loaded, records, arguments.device))
    zero3.write(loaded.safe_llava, found)
    return dataclasses.replace(loaded, ours={**loaded.ours, **found})


def _kept(checkpoint: Path) -> dict[str, Tensor]:
    with whole(checkpoint, "weights"):
        tensors = stored.read_tensors(checkpoint / SAFETY_FILE)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(NAME)}


def _taken(recipe: Recipe, loaded: Loaded, records: Sequence[Record], device: torch.device) -> dict[str, Tensor]:
    images = _drawn(records, recipe.run.seed)
    if not images:
        raise ValueError(
            "model.safety.projector_standardize: no record has an image to take the mean of; leave it out, or add some"
        )
    passes = image_passes(looking_model(recipe, loaded, device), images, device, BATCH, "what patches are like")
    mean, std = statistics(own for _, vision in passes for own in vision.patches)
    return {f"{NAME}mean": mean, f"{NAME}std": std}


def _drawn(records: Sequence[Record], seed: int) -> list[Path]:
    """Distinct images in a random order; the generator is its own, so that the run's draws stay what they are."""
    found: dict[Path, None] = {}
    for row in np.random.default_rng(seed).permutation(len(records)):
        found |= dict.fromkeys(records[int(row)].images)
        if len(found) >= IMAGES:
            break
    return list(found)[:IMAGES]
