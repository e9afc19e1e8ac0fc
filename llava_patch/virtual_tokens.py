"""Learned vectors anywhere in the prompt, as if they were tokens of an image.

LLaVA puts image features into the image slots of `input_ids` in the order of the slots. A learned vector therefore
needs a slot at its place and a row among the features, and nothing else: embedding, cache, padding and batching are
LLaVA's own.

    t tokens · n image features of the row · d LLM width · k vectors
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def insert(
    input_ids: Tensor, features: Tensor | None, virtual: Sequence[tuple[Tensor, int]], image_token_id: int
) -> tuple[Tensor, Tensor]:
    """(t,), (n, d) or None, [((k, d), index in front of which they stand)] → (t + Σk,), (n + Σk, d).

    Indices are those of `input_ids` as given; vectors at one index keep their order. ValueError: an index outside, or
    features that do not fill the slots.
    """
    rows = virtual[0][0].new_zeros(0, virtual[0][0].shape[-1]) if features is None else features
    slots = int((input_ids == image_token_id).sum())
    if len(rows) != slots:
        raise ValueError(f"{len(rows)} image features for {slots} image slots")
    # from the back, so that earlier indices stay what they are
    for vectors, at in reversed(sorted(virtual, key=lambda pair: pair[1])):
        if not 0 <= at <= len(input_ids):
            raise ValueError(f"virtual tokens at {at} of a prompt of {len(input_ids)} tokens")
        before = int((input_ids[:at] == image_token_id).sum())
        rows = torch.cat([rows[:before], vectors.to(rows.device, rows.dtype), rows[before:]])
        new = input_ids.new_full((len(vectors),), image_token_id)
        input_ids = torch.cat([input_ids[:at], new, input_ids[at:]])
    return input_ids, rows
