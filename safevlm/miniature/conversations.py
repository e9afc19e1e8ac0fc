"""What the base is taught to say: help with whatever an image shows, refusals in words, and what a note asks for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from safevlm.data import chat_messages
from safevlm.miniature import words
from safevlm.miniature.world import RISKY, THINGS, Scene
from safevlm.taxonomy import CLEAN
from safevlm.worlds.tokens import Tokens, by_length, tokenize

Conversation = tuple[int | None, Tokens]
"""The row of its image, if it has one, and its tokens."""

IN_WORDS = 0.2
"""Share of conversations without an image."""


def batches(
    rng: random.Random, processor: Any, scenes: Sequence[Scene], rows: Sequence[int], size: int, placeholder: str
) -> list[list[Conversation]]:
    """Eight batches, sorted by length before they are cut so that little is padding, in random order.

    `placeholder`: what stands in the prompt for an image.
    """
    made = [_conversation(rng, scenes, rows) for _ in range(8 * size)]
    tokens = tokenize(processor, [messages for _, messages in made], placeholder)
    cut = by_length(list(zip([row for row, _ in made], tokens, strict=True)), size)
    rng.shuffle(cut)
    return cut


def _conversation(
    rng: random.Random, scenes: Sequence[Scene], rows: Sequence[int]
) -> tuple[int | None, list[chat_messages.Message]]:
    """One training conversation and the row of its image, if it has one."""
    if rng.random() < IN_WORDS:
        return None, _about_words(rng)
    row = rng.choice(rows)
    return row, _about_image(rng, scenes[row])


def _about_words(rng: random.Random) -> list[chat_messages.Message]:
    thing = rng.choice(THINGS if rng.random() < 0.7 else RISKY)
    if rng.random() < 0.25:
        return [
            chat_messages.user(rng.choice(words.ABOUT_TEXT).format(name=thing.name)),
            chat_messages.assistant(words.about(thing)),
        ]
    question = rng.choice(words.USE_TEXT).format(name=thing.name)
    plain = words.steps([thing]) if thing.category == CLEAN else words.refuse(thing.category)
    return _with_note(rng, question, plain, images=0)


def _about_image(rng: random.Random, scene: Scene) -> list[chat_messages.Message]:
    if rng.random() < 0.5:
        return _with_note(rng, rng.choice(words.DESCRIBE), words.describe(scene.things), images=1)
    return _with_note(rng, rng.choice(words.USE_IMAGE), words.steps(scene.things), images=1)


def _with_note(rng: random.Random, question: str, plain: str, images: int) -> list[chat_messages.Message]:
    """The plain answer; or, after a safety note, what the note asks for; or the plain one after an empty aside."""
    draw = rng.random()
    if draw < 0.3:
        level, category = rng.choice((1, 2, 3)), rng.choice(list(words.RISKY_CATEGORIES))
        answer = words.careful(category) if level == 1 else words.refuse(category)
        return [
            chat_messages.user(f"{question}\n{words.note(rng, level, category)}", images),
            chat_messages.assistant(answer),
        ]
    if draw < 0.4:
        question = f"{question}\n{rng.choice(words.ASIDES)}"
    return [chat_messages.user(question, images), chat_messages.assistant(plain)]
