"""Which patch of an image shows which thing of its scene.

b images · p patches · k things that a scene has at most; places are -1 to 1, as in `views`
"""

from __future__ import annotations

import torch
from torch import Tensor

from safevlm.worlds.views import View

FAR = 9.0
"""Beyond every image: where a thing is that is not there."""


def covered(patches: int, middle: Tensor, half: Tensor, is_there: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Image, thing and patch of every patch whose middle a thing covers; of several things the nearest.

    `middle`, `half`: (b, k, 2) of the things in their scenes; `is_there`: (b, k).
    """
    side = round(patches**0.5)
    line = (torch.arange(side, device=middle.device) + 0.5) / side * 2 - 1
    middles = torch.stack([line.repeat(side), line.repeat_interleave(side)], 1)
    places = view.places(middle)
    reach = half * view.scale[:, None, None]
    distance = ((middles[None, :, None] - places[:, None]).abs() / reach[:, None]).amax(-1)
    distance = distance.masked_fill(~is_there[:, None, :], FAR)
    nearest, thing = distance.min(-1)
    image, patch = (nearest <= 1).nonzero().unbind(1)
    return image, thing[image, patch], patch
