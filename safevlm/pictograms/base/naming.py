"""Whether single things are named right: by the CLIP alone (the rule of the held-out styles), and by the whole base."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llava_patch.fresh import Clip
from safevlm import intervals
from safevlm.pictograms import words
from safevlm.pictograms.base import captions
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.base.scenes import pixels_of
from safevlm.pictograms.parts import Parts, things_of
from safevlm.pictograms.splits import content
from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.world import THINGS, Pictogram, PictogramScene, scene_around
from safevlm.worlds.splits import split_of_content

BATCH = 100


def by_clip(
    clip: Clip, tokenizer: PreTrainedTokenizerFast, images: Any, parts: Parts, config: PictogramBaseConfig
) -> dict[str, Any]:
    """By style: the share of lone things whose own name is the nearest to their image of all names in the world."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (images.image_mean, images.image_std))
    found = {}
    for style in STYLES if config.cases else ():
        scenes = lone_scenes(style, things_of(style), config.cases, config.seed)
        pixels = (pixels_of(scenes, parts).float() / 255 - mean) / std
        named = zip(_nearest(clip, tokenizer, pixels), scenes, strict=True)
        right = np.array([thing is scene.things[0] for thing, scene in named])
        found[style] = intervals.share(right).to_dict()
        print(f"named right in {style}: {intervals.share(right)}")
    return {"named_by_clip": found}


def lone_scenes(style: str, things: Sequence[Pictogram], count: int, seed: int) -> list[PictogramScene]:
    """Things of a style that stand alone, in turn; in a trained style only where validation may show them."""
    rng = random.Random(f"{seed} naming {style}")
    scenes: list[PictogramScene] = []
    for thing in itertools.cycle(rng.sample(things, len(things))):
        if len(scenes) == count:
            return scenes
        scene = scene_around(rng, style, thing, alone=True)
        if STYLES[style].part != "train" or split_of_content(content(scene)) == "validation":
            scenes.append(scene)
    return []


@torch.no_grad()
def _nearest(clip: Clip, tokenizer: PreTrainedTokenizerFast, pixels: Tensor) -> list[Pictogram]:
    said = captions.encode(tokenizer, [words.with_article(thing) for thing in THINGS], clip.device)
    nearest: list[Pictogram] = []
    for batch in pixels.split(BATCH):
        logits = clip(**said, pixel_values=batch.to(clip.device)).logits_per_image
        nearest += [THINGS[number] for number in logits.argmax(1)]
    return nearest
