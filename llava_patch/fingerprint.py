"""Whether two sets of weights are the same checkpoint, whatever type they are stored in.

A few values of every tensor are kept. A copy in half precision differs from them by rounding, which is bounded value
by value; another training run does not keep within that bound. The trap: names. A tower's own may or may not begin with
`vision_model.`, depending on what it was saved from and on the release of transformers.

    w tensors, in the order of their names
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

VALUES = 16
"""Kept of each tensor, evenly spaced."""
ROUNDING = 2.0**-7
"""Twice the relative rounding error of bfloat16, the coarsest type that weights are copied to (8 significant bits)."""
SMALLEST = 1e-6
"""Rounding error of float16 near 0, with room: 2^-25 for its subnormal numbers."""


def fingerprint(weights: Mapping[str, Tensor]) -> Tensor:
    """(w, VALUES), float32, on the CPU. Buffers of whole numbers, such as position ids, do not count."""
    own = {name.removeprefix("vision_model."): weight for name, weight in weights.items() if weight.is_floating_point()}
    return torch.stack([_sample(own[name]) for name in sorted(own)])


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints are of the same weights, up to the rounding of float16 and bfloat16."""
    if one.shape != other.shape:
        return False
    # not `allclose`: the bound is relative to the larger value, so that the order does not matter
    bound = ROUNDING * torch.maximum(one.abs(), other.abs()) + SMALLEST
    return bool(((one - other).abs() <= bound).all())


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    at = torch.arange(VALUES, device=flat.device) * len(flat) // VALUES
    return flat[at].float().cpu()
