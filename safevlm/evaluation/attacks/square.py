"""Square attack: no gradient, only scores (Andriushchenko et al., arXiv 1912.00049, §3, the L-infinity version).

Squares of extreme changes are tried at places drawn by chance, and kept where they bring the image nearer to what the
attacker wants. An attack by gradient that does worse than this one has met a gradient that is masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safevlm.evaluation.attacks.descent import Box, is_done, rank
from safevlm.evaluation.attacks.job import AttackJob
from safevlm.evaluation.attacks.white_box import WhiteBox

FIRST_SHARE = 0.8
"""Of the image's area that the first squares cover."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 queries: where that share is halved."""


@torch.no_grad()
def squares(job: AttackJob, box: WhiteBox, seed: int) -> Tensor:
    """(b, 3, h, w) of whole numbers, after `job.effort.queries` questions per image at most."""
    limits = Box(box.originals.float(), job.strength)
    generator = torch.Generator().manual_seed(seed)
    images = limits.project(limits.originals + job.strength * _stripes(limits.originals, generator))
    ranks = rank(box.losses(images / 255))
    for query in range(job.effort.queries):
        rows = torch.nonzero(~is_done(ranks)).flatten()
        if not len(rows):
            break
        tried = limits[rows].project(_with_square(images[rows], limits[rows], share(query, job), generator))
        found = rank(box.losses(tried / 255, rows.tolist()))
        better = found < ranks[rows]
        images[rows[better]], ranks[rows[better]] = tried[better], found[better]
    return images


def share(query: int, job: AttackJob) -> float:
    """Of the image's area that a square covers at this query."""
    place = query * 10_000 / job.effort.queries
    return FIRST_SHARE / 2 ** sum(place > mark for mark in HALVINGS)


def _stripes(images: Tensor, generator: torch.Generator) -> Tensor:
    """±1, the same down every column."""
    drawn = torch.randint(0, 2, (*images.shape[:2], 1, images.shape[3]), generator=generator)
    return (2 * drawn - 1).to(images).expand_as(images)


def _with_square(images: Tensor, limits: Box, area: float, generator: torch.Generator) -> Tensor:
    """One square of each image at another extreme."""
    count, channels, height, width = images.shape
    side = max(1, min(height, width, round((area * height * width) ** 0.5)))
    changed = images.clone()
    signs = (2 * torch.randint(0, 2, (count, channels, 1, 1), generator=generator) - 1).to(images)
    for row in range(count):
        top = int(torch.randint(0, height - side + 1, (1,), generator=generator))
        left = int(torch.randint(0, width - side + 1, (1,), generator=generator))
        place = (row, slice(None), slice(top, top + side), slice(left, left + side))
        changed[place] = limits.originals[place] + signs[row] * limits.size
    return changed
