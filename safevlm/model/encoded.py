"""A batch of requests as the model reads it: ids padded on the left, and what stands in the image slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ImageVectors = Any
"""What stands in an image's slots: (n, d), or of families other than LLaVA `ImageTokens`."""
EncodedRequest = tuple[Tensor, tuple[ImageVectors, ...]]
"""One request: ids (t,), and the vectors of its image slots, in order."""


@dataclass(frozen=True)
class EncodedBatch:
    """b requests of t tokens, padded on the left."""

    input_ids: Tensor
    """(b, t)."""
    attention_mask: Tensor
    """(b, t)."""
    image_tokens: tuple[ImageVectors, ...]
    """In the order of the slots of the whole batch; virtual tokens among them."""
    requests: tuple[int, ...]
    """Which requests the rows are."""
    lm_arguments: Callable[[Tensor, Sequence[ImageVectors]], dict[str, Any]]
    """The model's: ids and image tokens → further arguments."""
    tokens: tuple[int, ...]
    """Of each row, without padding."""

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Arguments of `forward` and `generate`."""
        further = self.lm_arguments(self.input_ids, self.image_tokens)
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **further}


def encode(
    rows: Sequence[EncodedRequest],
    pad_id: int,
    requests: Sequence[int],
    lm_arguments: Callable[[Tensor, Sequence[ImageVectors]], dict[str, Any]],
) -> EncodedBatch:
    """Pads rows of different length on the left with `pad_id`; `requests`: the index of each row's request."""
    ids = [ids for ids, _ in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left")
    mask = torch.ones_like(input_ids)
    for row, own in zip(mask, ids, strict=True):
        row[: len(row) - len(own)] = 0
    return EncodedBatch(
        input_ids=input_ids,
        attention_mask=mask,
        image_tokens=tuple(tokens for _, own in rows for tokens in own),
        requests=tuple(requests),
        lm_arguments=lm_arguments,
        tokens=tuple(map(len, ids)),
    )
