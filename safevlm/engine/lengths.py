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


def surely_fits(request: Request, slots: int, positions: int) -> bool:
    """Whether a prompt fits whatever the tokenizer makes of its words: a token has at least one byte of UTF-8.

    Nearly all requests do, and so are not tokenized twice. `slots`: image tokens per image.
    """
    said = (request.system, request.text, *(text for pair in request.history for text in pair))
    turns = 1 + len(request.history)
    return sum(len(text.encode()) for text in said) + slots * len(request.images) + SHORT * turns < positions


def check_length(tokens: int, slots: int, positions: int) -> None:
    """`tokens`: of the prompt, `slots` of them image or virtual tokens. ValueError: no room for an answer."""
    if tokens >= positions:
        raise ValueError(
            f"the prompt has {tokens} tokens, {slots} of them for images; this model has {positions} positions, for "
            "prompt and answer together. Shorten the words, or leave out earlier turns or images"
        )


def cut_to_room(new_ids: Tensor, room: Sequence[int], wanted: int, end_ids: Sequence[int], pad_id: int) -> Answers:
    """(b, new) ids of answers, each at most as long as its prompt left `room` for; `wanted` is what was asked for.

    Rows of a batch leave different room: the largest decides how long is generated, and what is too much is dropped.
    """
    allowed = torch.tensor(room, device=new_ids.device)
    ends = torch.tensor(end_ids, dtype=new_ids.dtype, device=new_ids.device)
    beyond = torch.arange(new_ids.shape[1], device=new_ids.device) >= allowed[:, None]
    ended = (torch.isin(new_ids, ends) & ~beyond).any(1)
    is_cut = (allowed < wanted) & (allowed <= new_ids.shape[1]) & ~ended
    return Answers(new_ids.masked_fill(beyond, pad_id), tuple(is_cut.tolist()))
