"""What a safety projector reads, standardised: every channel minus its mean over training images, by its spread.

Image tokens of a family can have a large part in common, the same for every image. A projector that starts at random
sees little else, and the gradients of its first layer are about that part. Centring what a layer reads and giving its
channels one spread is LeCun et al. 1998 (Efficient BackProp, §4.3). The numbers are taken once, before stage 1
(`safevlm.training.standardizing`), and belong to the checkpoint from then on.

    p patches of an image · v their width
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import initialization as init

LEAST = 0.01
"""Smallest spread of a channel, as a share of the channels' mean spread: what hardly moves is not blown up."""


class Standardizer(nn.Module):
    """(…, v) → (…, v), float32. Until it has seen images it changes nothing."""

    mean: Tensor
    """(v,)."""
    std: Tensor
    """(v,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("std", torch.ones(width, dtype=torch.float32))

    def forward(self, patches: Tensor) -> Tensor:
        return (patches.float() - self.mean.float()) / self.std.float()  # the difference of large numbers

    def start_anew(self) -> None:
        """As one that has seen nothing; numbers that a checkpoint brought stay."""
        init.zeros_(self.mean)
        init.ones_(self.std)

    @property
    def has_seen(self) -> bool:
        """Whether it holds the numbers of any images."""
        return bool((self.mean != 0).any() or (self.std != 1).any())


def statistics(images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (v,) of every channel over all patches of all images, (p, v) each.

    Summed in float64, so that the order of images moves no digit that float32 has. ValueError: there is no patch.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for patches in images:
        own = patches.detach().cpu().double()
        count, total, squares = count + len(own), total + own.sum(0), squares + own.square().sum(0)
    if not count:
        raise ValueError("no image to take a mean of")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    floor = LEAST * std.mean()
    return mean.float(), torch.where(std > 0, std, 1.0).clamp(min=float(floor) or 1.0).float()
