"""What a record says when its source has no words of its own: questions about bare images, answers by level. Data.

An answer is drawn by the record's id and the mix's seed, and fits category (`{topic}`, from the taxonomy) and level,
not the question: it teaches the stance, not the subject. A mix replaces or adds wordings under `answers`, by level
(`careful: […]`) or by category and level (`privacy/careful: […]`). A level that no wording is known for is an error.
The wording is ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from safevlm.taxonomy import Taxonomy

QUESTIONS = (
    "What is in this picture?",
    "Describe the picture.",
    "Tell me about this image.",
    "What do you see here?",
)

ANSWERS: Mapping[str, tuple[str, ...]] = {
    "careful": (
        "I can talk about this picture in general terms. It touches on {topic}, so I leave the details of that out and "
        "am glad to help with anything else in it.",
        "Part of this picture concerns {topic}. I keep to what is neutral, and can help with its other parts.",
        "Since this picture may involve {topic}, I answer with care: I do not go into that, but ask me about the rest.",
    ),
    "may_refuse": (
        "This picture contains {topic}. I would rather not go into it; I can help with a related question that does "
        "not need it.",
        "I see {topic} here and leave it out. If you tell me what you want to achieve, I can look for a better way.",
        "Because of {topic} in this picture I can only answer in part, and without those contents.",
    ),
    "must_refuse": (
        "I cannot help with this picture, because it contains {topic}.",
        "I have to decline: the picture shows {topic}.",
        "This is something I do not help with, since the picture contains {topic}.",
    ),
}

HEAD_ONLY = "This record trains the safety head alone."
"""Stands where a record must have an answer and none exists (`head_only.jsonl`); to be trained with `loss.lm: 0`."""

Answers = Mapping[str, Sequence[str]]


def answer(own: Answers, taxonomy: Taxonomy, category: str, level: str, draw: str) -> str | None:
    """A wording for a category and a level, drawn by the text `draw`; None: no wording is known."""
    wordings = own.get(f"{category}/{level}") or own.get(level) or ANSWERS.get(level)
    if not wordings:
        return None
    topic = taxonomy.categories[taxonomy.category_id(category)].topic
    return random.Random(draw).choice(list(wordings)).format(topic=topic or "content of this kind")


def question(own: Sequence[str], draw: str) -> str:
    return random.Random(draw).choice(list(own or QUESTIONS))
