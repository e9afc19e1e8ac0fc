"""How long each step of the base takes. Nothing is imported here: the flags of a command are read from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PictogramBaseConfig:
    """A step is one batch."""

    seed: int = 1_000_003
    scenes: int = 16_000
    """That the tower learns from, each seen in many ways."""
    sight_steps: int = 2_800
    """Of the tower alone, on what its patches show."""
    caption_steps: int = 200
    """On captions, of what lies above the layer that LLaVA reads and of the text tower."""
    clip_batch: int = 96
    align_steps: int = 250
    """Of the LLM, in words alone."""
    align_batch: int = 16
    pictures: int = 5_000
    """That the LLM learns to see from; the tower reads each of them once."""
    fit_steps: int = 400
    """Of the new projector, towards the embeddings of names; 0: it starts at random, as LLaVA's did."""
    projector_steps: int = 60
    """Of the projector alone, on the names of things that stand alone."""
    see_steps: int = 600
    """Of projector and LoRA."""
    see_batch: int = 16
    cases: int = 200
    """Single things that are named, for each number; 0: nothing is measured."""


SIZES = {
    "cpu": PictogramBaseConfig(),
    "card": PictogramBaseConfig(
        scenes=48_000,
        sight_steps=6_000,
        caption_steps=600,
        clip_batch=384,
        align_steps=300,
        align_batch=256,
        pictures=24_000,
        fit_steps=0,
        projector_steps=200,
        see_steps=500,
        see_batch=256,
    ),
}
"""By what the base is built on: two cores for some hours, or one card for some minutes, which a larger batch costs
next to nothing: small models wait for their kernels to start."""
