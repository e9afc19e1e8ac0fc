"""Prompts and answers against the positions that a model was made for: beyond them it babbles, and nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from safevlm.types import Request

SHORT = 64
"""Tokens of the template's own words in a turn, with room."""


@dataclass(frozen=True)
class WrittenAnswer:
    """What the model answered to one prompt."""

    ids: list[int]
    """Without the prompt and what came after the end; the token that ends it included."""
    is_cut: bool
    """It did not end by itself, but where the model's positions do."""
    has_ended: bool
    """It ended by itself."""


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
    new_ids: Tensor, room: Sequence[int], wanted: Sequence[int], end_ids: Sequence[int]
) -> list[WrittenAnswer]:
    """(b, new) ids of answers, each at most as long as its prompt left `room` for, and as was `wanted`.

    Rows of a batch may be of different length: the largest decides how long is generated; what is too much is dropped.
    """
    return [_cut(*row, end_ids) for row in zip(new_ids.tolist(), room, wanted, strict=True)]


def _cut(ids: list[int], room: int, wanted: int, end_ids: Sequence[int]) -> WrittenAnswer:
    own = ids[: min(room, wanted)]
    end = next((place for place, token in enumerate(own, 1) if token in end_ids), 0)
    return WrittenAnswer(own[: end or None], room < wanted and room <= len(ids) and not end, end > 0)
