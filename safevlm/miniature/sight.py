"""What a tower is asked about its patches while it learns to see, and thrown away after: the base's tags.

Of the image: which things and which frame. Of a patch that a thing covers: which thing, its outline, its mark, its
colour, and the letters of a written word. Nothing in here tells what is risky; that stands in captions only.

b images · p patches · v width of the tower
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safevlm.miniature import drawing
from safevlm.miniature.world import COLOURS, FRAME_SHIFT, THINGS, Scene
from safevlm.worlds.covered import FAR, covered
from safevlm.worlds.views import View

FRAMES = tuple(frame for frame in FRAME_SHIFT if frame != "none")
MOST = 3  # things in a scene
WORD_HALF = (0.6, 0.3)  # half of a written word's width and height
NAMES = [thing.name for thing in THINGS]
CHOICES: dict[str, list[str]] = {
    "thing": NAMES,
    "outline": list(drawing.OUTLINE_POINTS),
    "mark": list(drawing.MARK_STROKES),
    "colour": list(COLOURS),
}
"""What a patch is asked to choose from."""
WEIGHTS = {"thing": 1.0, "outline": 1.0, "mark": 1.0, "colour": 0.5, "letters": 1 / 3}
NO_CHOICE = -100
RARE = -6.0
"""Logit at the start of what is in few images, summed over patches."""


class Truth:
    """Where the things of scenes are, and what."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        count = len(scenes)
        self.tags = torch.tensor([_tags(scene) for scene in scenes]).float()
        self.middle = torch.full((count, MOST, 2), FAR)
        self.half = torch.ones(count, MOST, 2)
        self.choices = torch.full((count, MOST, len(CHOICES)), NO_CHOICE)
        self.letters = torch.zeros(count, MOST, len(string.ascii_lowercase))
        for row, scene in enumerate(scenes):
            self._place(row, scene)

    def _place(self, row: int, scene: Scene) -> None:
        if scene.word:
            self.middle[row, 0] = _unit(drawing.WORD_PLACE)
            self.half[row, 0] = torch.tensor(WORD_HALF)
            self.choices[row, 0, 0] = NAMES.index(scene.word.name)
            for letter in scene.word.name:
                self.letters[row, 0, string.ascii_lowercase.index(letter)] = 1
        for number, placed in enumerate(scene.placed):
            thing = placed.thing
            self.middle[row, number] = _unit(drawing.middle(placed))
            self.half[row, number] = 2 * placed.radius / drawing.SIZE
            chosen = (thing.name, thing.outline, thing.mark, placed.colour)
            self.choices[row, number] = torch.tensor(
                [names.index(name) for names, name in zip(CHOICES.values(), chosen, strict=True)]
            )


class ReadOut(nn.Module):
    """Linear read-outs of patches, and how wrong they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, len(NAMES) + len(FRAMES))
        nn.init.constant_(last.bias, RARE)
        self.tags = nn.Sequential(nn.LayerNorm(width), last)
        self.sizes = [*map(len, CHOICES.values()), len(string.ascii_lowercase)]
        self.parts = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))

    def forward(self, patches: Tensor) -> Tensor:
        """(b, p, v) → (b, things + frames): logits of what is somewhere in the image."""
        return self.tags(patches).logsumexp(1)

    def loss(self, patches: Tensor, truth: Truth, rows: Tensor, view: View) -> Tensor:
        """Of the scenes `rows`, seen as `view` says: tags per image, and choices per patch that a thing covers."""
        tags = F.binary_cross_entropy_with_logits(self(patches), truth.tags[rows], reduction="sum") / len(rows)
        is_there = truth.choices[rows][..., 0] != NO_CHOICE
        image, thing, patch = covered(patches.shape[1], truth.middle[rows], truth.half[rows], is_there, view)
        of = rows[image]
        *logits, letters = self.parts(patches[image, patch]).split(self.sizes, 1)
        total: Tensor = tags
        for name, logit, choice in zip(CHOICES, logits, truth.choices[of, thing].unbind(1), strict=True):
            if (choice != NO_CHOICE).any():
                total = total + WEIGHTS[name] * F.cross_entropy(logit, choice, ignore_index=NO_CHOICE)
        written = truth.letters[of, thing].any(1)
        if written.any():
            wrong = F.binary_cross_entropy_with_logits(
                letters[written], truth.letters[of, thing][written], reduction="sum"
            )
            total = total + WEIGHTS["letters"] * wrong / written.sum()
        return total


def _tags(scene: Scene) -> list[bool]:
    """What is in the image, drawn or written, and its frame."""
    return [thing in scene.things for thing in THINGS] + [scene.frame == frame for frame in FRAMES]


def _unit(place: tuple[float, float]) -> Tensor:
    """Pixels → -1 to 1."""
    return torch.tensor(place) * 2 / drawing.SIZE - 1
