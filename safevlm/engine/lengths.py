"""Prompts and answers against the positions that a model was made for: beyond them it babbles, and nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safevlm.types import Request

SHORT = 64
"""Tokens of the template's own words in a turn, with room."""


@dataclass(frozen=True)
class Answers:
    """What b prompts were answered with."""

    ids: Tensor
    """(b, new), without the prompt; padded after an answer's end."""
    is_cut: tuple[bool, ...]
    """Where an answer did not end by itself, but where the model's positions do."""
    has_ended: tuple[bool, ...]
    """Where an answer ended by itself."""
    tokens: tuple[int, ...]
    """Of each answer, its end included."""


def surely_fits(request: Request, slots: int, positions: int) -> bool:
    """Whether a prompt fits whatever the tokenizer makes of its words: a token has at least one byte of UTF-8.

    Nearly all requests do, and so are not tokenized twice. `slots`: tokens of all its images, and marks around them.
    """
    said = (request.system, request.text, *(text for pair in request.history for text in pair))
    turns = 1 + len(request.history)
    return sum(len(text.encode()) for text in said) + slots + SHORT * turns < positions


def check_length(tokens: int, slots: int, positions: int) -> None:
    """`tokens`: of the prompt, `slots` of them image or virtual tokens. ValueError: no room for an answer."""
    if tokens >= positions:
        raise ValueError(
            f"the prompt has {tokens} tokens, {slots} of them for images; this model has {positions} positions, for "
            "prompt and answer together. Shorten the words, or leave out earlier turns or images"
        )


def cut_to_room(
    new_ids: Tensor, room: Sequence[int], wanted: Sequence[int], end_ids: Sequence[int], pad_id: int
) -> Answers:
    """(b, new) ids of answers, each at most as long as its prompt left `room` for, and as was `wanted`.

    Rows of a batch may be of different length: the largest decides how long is generated; what is too much is dropped.
    """
    device = new_ids.device
    allowed, asked_for = torch.tensor(room, device=device), torch.tensor(wanted, device=device)
    limit = torch.minimum(allowed, asked_for)
    ends = torch.tensor(end_ids, dtype=new_ids.dtype, device=device)
    place = torch.arange(new_ids.shape[1], device=device)
    beyond = place >= limit[:, None]
    is_end = torch.isin(new_ids, ends) & ~beyond
    has_ended = is_end.any(1)
    is_cut = (allowed < asked_for) & (allowed <= new_ids.shape[1]) & ~has_ended
    first_end = torch.where(has_ended, is_end.int().argmax(1) + 1, limit.clamp(max=new_ids.shape[1]))
    return Answers(
        new_ids.masked_fill(beyond, pad_id),
        tuple(is_cut.tolist()),
        tuple(has_ended.tolist()),
        tuple(first_end.tolist()),
    )
