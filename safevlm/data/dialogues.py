"""Which conversations can be trained on: at most one system turn, in front; then questions and answers in turn.

LLaVA's own training drops a leading answer in silence and stops at two turns of one speaker. Here both are faults that
a caller reports with the record's place, since whoever made such a record meant something else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


class Said(NamedTuple):
    """One turn: who, which words, and how many images in front of them."""

    role: str
    text: str
    images: int = 0


def order_fault(turns: Sequence[Said]) -> str:
    """What is wrong with who speaks when, or with a question of nothing at all; empty: nothing."""
    return next(_order_faults(turns), "")


def answer_fault(turns: Sequence[Said]) -> str:
    """Why a conversation has nothing, or something empty, to learn from; empty: every answer has words."""
    answers = [has_words(turn.text) for turn in turns if turn.role == ASSISTANT]
    if not any(answers):
        return "no answer to learn from; a record needs a non-empty gpt/ASSISTANT turn"
    if not all(answers):
        number = [index for index, turn in enumerate(turns, start=1) if _is_empty_answer(turn)][0]
        return f"turn {number} is an empty answer; it would teach to say nothing: write it, or leave the record out"
    return ""


def has_words(text: str) -> bool:
    """Whether anything of it can be seen: not white space, zero-width and control characters alone."""
    if text[:1].isalnum():
        return True
    return any(not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf") for letter in text)


def _is_empty_answer(turn: Said) -> bool:
    return turn.role == ASSISTANT and not has_words(turn.text)


def _order_faults(turns: Sequence[Said]) -> Iterator[str]:
    before = ""
    for number, turn in enumerate(turns, start=1):
        if turn.role == SYSTEM and number > 1:
            yield f"turn {number} is a system turn; there may be one, and only in front"
        elif turn.role == ASSISTANT and before in ("", SYSTEM):
            yield f"turn {number} is an answer that nobody asked for; a conversation begins with a human/USER turn"
        elif turn.role == before:
            yield f"turns {number - 1} and {number} have one speaker, {turn.role}; questions and answers must alternate"
        elif turn.role == USER and not turn.images and not has_words(turn.text):
            yield f"turn {number} is a question without words or image"
        before = turn.role
