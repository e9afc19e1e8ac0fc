"""The scenes that the base is built on: trained styles, and nothing that validation or test hold back (`splits`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from safevlm.pictograms import drawing
from safevlm.pictograms.parts import Parts
from safevlm.pictograms.splits import is_for_base, sample
from safevlm.pictograms.styles import of_part
from safevlm.pictograms.world import (
    CORNERS,
    GROUNDS,
    HARMLESS,
    RISKY,
    THINGS,
    Kind,
    Pictogram,
    PictogramScene,
    Placed,
    scene_around,
    written,
)
from safevlm.worlds import pictures

SceneMaker = Callable[[random.Random], PictogramScene]
USABLE: tuple[Kind, ...] = ("benign", "benign", "lookalike", "benign_word")
"""Kinds of scenes whose large or written thing is harmless: the only ones in which a use is taught."""
SIZES, INSETS = (0.34, 0.48), (0.0, 0.03)
"""Of one of four things, as shares of the image's side."""


@dataclass(frozen=True)
class SceneImages:
    scenes: Sequence[PictogramScene]
    pixels: Tensor
    """(scenes, 3, SIZE, SIZE), 0-255."""


def draw(rng: random.Random, count: int, make: SceneMaker, parts: Parts) -> SceneImages:
    """So many scenes that the base may be built on. PartsError: a part is missing."""
    scenes: list[PictogramScene] = []
    while len(scenes) < count:
        if is_for_base(scene := make(rng)):
            scenes.append(scene)
    return SceneImages(scenes, pixels_of(scenes, parts))


def pixels_of(scenes: Sequence[PictogramScene], parts: Parts) -> Tensor:
    """(scenes, 3, SIZE, SIZE), 0-255."""
    return pictures.pixels_of(scenes, lambda scene: drawing.draw(scene, parts))


def shown_to_tower(styles: Sequence[str]) -> SceneMaker:
    """What the tower learns to see from: any thing alone, four things at once, a scene of the world, a written word."""

    def make(rng: random.Random) -> PictogramScene:
        draw = rng.random()
        if draw < 0.12:
            return written(rng, rng.choice(THINGS))
        main, style = _in_style(rng, THINGS, styles)
        if draw < 0.55:
            return scene_around(rng, style, main, alone=True)
        if draw < 0.75:
            return scene_around(rng, style, main)
        return _four(rng, style, main)

    return make


def lone(rng: random.Random) -> PictogramScene:
    """Any thing alone, or a written word: what is named first."""
    if rng.random() < 0.1:
        return written(rng, rng.choice(THINGS))
    main, style = _in_style(rng, _any_thing(rng), of_part("train"))
    return scene_around(rng, style, main, alone=True)


def named(rng: random.Random) -> PictogramScene:
    """A scene of the world around any thing, or a written word."""
    if rng.random() < 0.15:
        return written(rng, rng.choice(_any_thing(rng)))
    main, style = _in_style(rng, _any_thing(rng), of_part("train"))
    return scene_around(rng, style, main, alone=rng.random() < 0.3)


def used(rng: random.Random) -> PictogramScene:
    """A scene in which a harmless thing is large or written."""
    return sample(rng, rng.choice(USABLE), "train")


def _any_thing(rng: random.Random) -> Sequence[Pictogram]:
    """Risky ones more often than they are many."""
    return RISKY if rng.random() < 0.25 else HARMLESS


def _in_style(rng: random.Random, things: Sequence[Pictogram], styles: Sequence[str]) -> tuple[Pictogram, str]:
    """A thing, each as often as any other, and one of the styles that draw it."""
    while True:
        thing = rng.choice(things)
        if drawn := [style for style in styles if style in thing.styles]:
            return thing, rng.choice(drawn)


def _four(rng: random.Random, style: str, main: Pictogram) -> PictogramScene:
    """Four things of one style and about one size: much to learn from one image."""
    others = [_in_style(rng, THINGS, [style])[0] for _ in range(len(CORNERS) - 1)]
    places = zip([main, *others], rng.sample(CORNERS, len(CORNERS)), strict=True)
    placed = [
        Placed(thing, corner, rng.uniform(*SIZES), (rng.uniform(*INSETS), rng.uniform(*INSETS)), rng.uniform(-15, 15))
        for thing, corner in places
    ]
    light = (rng.uniform(0.75, 1.15), rng.uniform(0.75, 1.1))
    return PictogramScene(style, tuple(placed), None, rng.choice(GROUNDS), light, rng.randrange(2**31))
