"""Which scenes are for training, for choices, and for the last question: by what they show, whatever the seed.

A scene in a held-out style belongs to that style's split, and one of an unseen class to that class's. All others are
dealt by a digest of what is where; light, ground, and a few pixels more or less make no other scene. Words are too few
for chance: of a word's four grounds two are for training, one is for validation and one for the test.
"""

from __future__ import annotations

import random

from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.world import GROUNDS, THINGS, Kind, Pictogram, PictogramScene, Styles, sample_scene
from safevlm.worlds.splits import SPLITS, Split, split_of_content

WORD_SPLITS: tuple[Split, ...] = ("train", "train", "validation", "test")
"""Of a word's grounds, in an order that turns from word to word."""


def content(scene: PictogramScene) -> str:
    """What two near-copies have in common."""
    if scene.word:
        return f"the word {scene.word.name} on {scene.ground}"
    return f"{scene.style}: " + ", ".join(f"{one.thing.name} at {one.corner}" for one in scene.placed)


def is_for_base(scene: PictogramScene) -> bool:
    """Whether the base may be built on the scene: trained styles, and nothing that is for validation or test.

    Tower and LLM learn the names of unseen classes too, but in no style, and on no ground, that a split holds back.
    """
    if scene.word:
        return _of_word(scene.word, scene.ground) == "train"
    return STYLES[scene.style].part == "train" and split_of_content(content(scene)) == "train"


def split_of(scene: PictogramScene) -> Split:
    if not scene.things[0].is_seen:
        return scene.things[0].part
    if scene.word:
        return _of_word(scene.word, scene.ground)
    part = STYLES[scene.style].part
    return split_of_content(content(scene)) if part == "train" else part


def sample(rng: random.Random, kind: Kind, split: Split, styles: Styles = "trained") -> PictogramScene:
    """A random scene of a kind and a split. ValueError: the split has none, as training has no unseen class."""
    if split == "train" and (kind in ("unseen", "unseen_word") or styles == "held_out"):
        raise ValueError(f"no scene of kind {kind!r} in {styles} styles is for train; splits: {list(SPLITS)}")
    while True:
        if split_of(scene := sample_scene(rng, kind, split, styles)) == split:
            return scene


def _of_word(word: Pictogram, ground: str) -> Split:
    return WORD_SPLITS[(THINGS.index(word) + GROUNDS.index(ground)) % len(WORD_SPLITS)]
