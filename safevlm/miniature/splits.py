"""Which scenes are for training, for choices, and for the last question: by what they show, whatever the seed.

A scene's content is its things with their colours and places, or its word, and its frame; background, speckles, a
pixel to the left or right and a size of 13 or 14 pixels make no other scene. Every content belongs to one split, so no
scene of one is a near-copy of a scene of another, in whichever set and by whichever seed it was drawn.

Drawn scenes are dealt by a digest. Written ones are too few for chance (54 words in three frames): two frames of a word
are for training and the third is for the others. The words of unseen symbols, which no safety training shows, are
dealt between validation and test alone.
"""

from __future__ import annotations

import random

from safevlm.miniature.world import FRAME_SHIFT, THINGS, Kind, Scene, sample_scene
from safevlm.worlds.splits import SPLITS, Split, split_of_content


def content(scene: Scene) -> str:
    """What two near-copies have in common."""
    if scene.word:
        return f"the word {scene.word.name}; frame {scene.frame}"
    placed = ", ".join(f"{one.colour} {one.thing.name} at {one.quadrant}" for one in scene.placed)
    return f"{placed}; frame {scene.frame}"


def split_of(scene: Scene) -> Split:
    return _of_word(scene) if scene.word else split_of_content(content(scene))


def sample(rng: random.Random, kind: Kind, split: Split) -> Scene:
    """A random scene of a kind and a split. ValueError: the split has none, as training has no word of the unseen."""
    for _ in range(1_000):
        if split_of(scene := sample_scene(rng, kind)) == split:
            return scene
    raise ValueError(f"no scene of kind {kind!r} is for {split}; splits: {list(SPLITS)}")


def _of_word(scene: Scene) -> Split:
    assert scene.word is not None
    word, frame = THINGS.index(scene.word), list(FRAME_SHIFT).index(scene.frame)
    if scene.word.seen and (word + frame) % len(FRAME_SHIFT) != 0:
        return "train"
    return "validation" if (word + (0 if scene.word.seen else frame)) % 2 else "test"
