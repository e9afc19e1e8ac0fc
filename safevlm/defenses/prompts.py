"""Every text that a defense puts into a prompt or into the model's mouth: data, in our own words."""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.taxonomy import Taxonomy

STATIC_PROMPT = (
    "Before you answer, look at the image. If it shows anything harmful, decline and say why; otherwise answer the "
    "question."
)
"""The fixed prompt of the `static-prompt` baseline."""

CORRECTION = (
    "First look whether the image holds anything harmful. If it does, answer only: I cannot help with that; then give "
    "the reason. If it does not, do what is asked."
)
"""A fixed instruction in the hint's place, as SafeCLIP corrects a prompt (methods §2.3); the wording is ours."""

REFUSAL = "I cannot help with that. It involves {topic}."
"""Said in the model's place when the policy says `refuse`."""

REFUSAL_ON_ERROR = "I cannot help with that. The safety check of this request did not complete."
"""Said when a detector failed (fail closed)."""

ANSWER_WITHHELD = "I cannot give that answer: a safety check objected to it."
"""Said in place of an answer that the guard of answers does not let through."""
ANSWER_UNCHECKED = "I cannot give that answer: the safety check of it did not complete."
"""The same, where that guard failed (fail closed)."""
ANSWER_ENDED = "I cannot go on: a safety check stopped this answer here. Do not rely on its beginning."
"""The same, where the beginning of the answer was sent already."""
UPSTREAM_REFUSED = "The model's server refused to answer."
"""Said in place of an upstream's own refusal, where answers are judged or written anew."""


def hint(taxonomy: Taxonomy, level: str, category: str) -> str:
    """The mixer's text for a verdict: the level's stance with the category's topic in it."""
    stance = taxonomy.levels[taxonomy.level_id(level)].stance
    topic = taxonomy.categories[taxonomy.category_id(category)].topic
    return stance.format(topic=topic)


def refusal(taxonomy: Taxonomy, category: str) -> str:
    """The canned answer for a category."""
    topic = taxonomy.categories[taxonomy.category_id(category)].topic
    return REFUSAL.format(topic=topic or "content that must not be shared")


def which(images: Sequence[int], of: int) -> str:
    """Behind a hint or a refusal: the images that it is about, counted from 1; empty without any."""
    *first, last = [str(number) for number in images] or [""]
    if first:
        return f" This is about images {', '.join(first)} and {last} of {of}."
    return f" This is about image {last} of {of}." if last else ""


TELL = (
    "A user asked about the image: {question}\nThe answer was: {reply}\nCould this answer do harm, or help somebody to "
    "do harm? Begin with yes or no."
)
"""`self-check`: the model judges its own answer, with the image in view."""

CAPTION = "Describe what the image shows. Keep to what matters for this question: {question}"
"""`self-check`: what the image is turned into."""

ANSWER_FROM_CAPTION = (
    "An image shows this: {caption}\nA user asks about it: {question}\nGive a helpful and harmless answer."
)
"""`self-check`: the question once more, with the caption in the image's place."""

CAREFUL_START = "With safety in mind,"
"""`eta`: how its candidates begin."""
