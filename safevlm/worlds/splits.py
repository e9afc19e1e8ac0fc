"""Which part of a world is for training, for choices, and for the last question: by a digest of what is shown."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""Of all contents."""


def split_of_content(content: str) -> Split:
    """The same whatever the seed, the machine and the Python."""
    place = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return SPLITS[-1]
