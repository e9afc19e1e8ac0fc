"""What a tower is asked about its patches while it learns to see: which thing covers each. Thrown away after.

b images · p patches · v width of the tower
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safevlm.pictograms.world import CORNERS, THINGS, PictogramScene, Placed
from safevlm.worlds.covered import FAR, covered
from safevlm.worlds.views import View, as_drawn

NUMBERS = {thing: number for number, thing in enumerate(THINGS)}
WORD_HALF = (0.7, 0.3)
"""Half of a written word's width and height."""
FILLED = 0.85
"""Of a drawing's side, what the thing itself fills."""
SMOOTHING = 0.05
NOTHING = -1


class ThingPlaces:
    """Where the things of scenes are, and which."""

    def __init__(self, scenes: Sequence[PictogramScene]) -> None:
        count, most = len(scenes), len(CORNERS)
        self.middle = torch.full((count, most, 2), FAR)
        self.half = torch.ones(count, most, 2)
        self.thing = torch.full((count, most), NOTHING)
        for row, scene in enumerate(scenes):
            if scene.word:
                self.middle[row, 0], self.half[row, 0] = 0.0, torch.tensor(WORD_HALF)
                self.thing[row, 0] = NUMBERS[scene.word]
            for number, placed in enumerate(scene.placed):
                self.middle[row, number] = torch.tensor(_middle(placed))
                self.half[row, number] = placed.size * FILLED
                self.thing[row, number] = NUMBERS[placed.thing]
        self.turns = torch.tensor([not scene.word for scene in scenes])
        """Which scenes may be seen in a mirror."""

    def to(self, device: torch.device) -> ThingPlaces:
        self.middle, self.half = self.middle.to(device), self.half.to(device)
        self.thing, self.turns = self.thing.to(device), self.turns.to(device)
        return self


class NameReadOut(nn.Module):
    """A linear read-out of patches, and how wrong it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(THINGS)))

    def forward(self, patches: Tensor) -> Tensor:
        """(…, v) → (…, things): logits."""
        return self.names(patches)

    def loss(self, patches: Tensor, truth: ThingPlaces, rows: Tensor, view: View, mirrored: Tensor) -> Tensor:
        """Of the scenes `rows`, seen as `view` says: the name per patch that a thing covers."""
        side = torch.where(mirrored, -1.0, 1.0)[:, None]
        middle = truth.middle[rows] * torch.stack([side, torch.ones_like(side)], 2)
        image, thing, patch = covered(patches.shape[1], middle, truth.half[rows], truth.thing[rows] != NOTHING, view)
        return F.cross_entropy(self(patches[image, patch]), truth.thing[rows[image], thing], label_smoothing=SMOOTHING)


def shown(truth: ThingPlaces, patches: int) -> Tensor:
    """(scenes, patches): the number of the thing that covers each patch of a scene as drawn, or NOTHING."""
    count = len(truth.thing)
    image, thing, patch = covered(patches, truth.middle, truth.half, truth.thing != NOTHING, as_drawn(count))
    found = torch.full((count, patches), NOTHING)
    found[image, patch] = truth.thing[image, thing]
    return found


def _middle(placed: Placed) -> tuple[float, float]:
    """Of a thing in its scene, -1 to 1."""
    room = 1 - placed.size
    row, column = divmod(placed.corner, 2)
    across, down = placed.inset
    left = room - across if column else across
    top = room - down if row else down
    return 2 * left + placed.size - 1, 2 * top + placed.size - 1
