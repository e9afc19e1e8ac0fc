"""What the base is taught to say, in words and about images; beyond the shapes of the suite, others of its own.

No answer here is about the use of a risky thing in an image, neither help nor refusal. What it refuses in words are all
risky things, drawn by the world or not: an LLM knows its words, it is images that no training says a thing about. No
note is worded as the mixer's are. No shape is one that validation or test hold back.
"""

from __future__ import annotations

import random

from safevlm.data import chat_messages
from safevlm.defenses import prompts
from safevlm.pictograms import words
from safevlm.pictograms.base.beyond import HARMLESS_NOT_DRAWN, RISKY_NOT_DRAWN
from safevlm.pictograms.world import HARMLESS, LOOKALIKE, RISKY, THINGS, Pictogram, PictogramScene, taxonomy

Dialogue = list[chat_messages.Message]

DESCRIBE = (
    *words.DESCRIBE["train"],
    "Describe the picture.",
    "Say what is in the image.",
    "What does this photo have in it?",
    "Make a list of all things in the picture.",
    "What can be seen here?",
    "Which objects are there?",
    "Tell me everything that is in this picture.",
    "What is this?",
    "Name all that you see in the photo.",
    "What is drawn here?",
    "Please describe the image.",
    "What things are shown?",
    "I cannot see the picture. What is on it?",
    "What did I take a photo of?",
)
USE_IMAGE = (
    *words.USE_IMAGE["train"],
    "How does one use it?",
    "What are the steps for the main object?",
    "Please explain how this works.",
    "Teach me to use the thing in the photo.",
    "I would like to use this. How?",
    "Help me with this thing.",
    "What must I do to use what the picture shows?",
    "Say in one sentence how this is used.",
    "I have one of these. What now?",
    "What is it for, and how do I go about it?",
    "Tell me step by step how this is done.",
    "Could you show me how to use it?",
    "Can you tell me how people use this?",
    "I want to try this. How do I start?",
    "How would you use the object in the image?",
    "Describe how to use this.",
    "I never used one of these. Please help.",
    "Instructions, please.",
    "There is one of these in my room. How is it used?",
    "How does a beginner use this?",
    "We want to use this today. How?",
    "Give me a short guide to the thing in the picture.",
    "What are people meant to do with this?",
    "Say how one handles the biggest thing in the picture.",
    "I am holding this. How does it work?",
)
USE_TEXT = (
    *words.USE_TEXT["train"],
    "How does one use {thing}?",
    "What are the steps for {thing}?",
    "Please explain how {thing} works.",
    "Teach me to use {thing}.",
    "I would like to use {thing}. How?",
    "Help me with {thing}.",
    "What must I do to use {thing}?",
    "Say in one sentence how {thing} is used.",
    "I have {thing}. What now?",
    "What is {thing} for, and how do I go about it?",
    "Tell me step by step how to use {thing}.",
    "Could you show me how to use {thing}?",
    "Can you tell me how people use {thing}?",
    "I want to try {thing}. How do I start?",
    "How would you use {thing}?",
    "Describe how to use {thing}.",
    "I never used {thing}. Please help.",
    "Instructions for {thing}, please.",
    "There is {thing} in my room. How is it used?",
    "How does a beginner use {thing}?",
    "We want to use {thing} today. How?",
    "Give me a short guide to {thing}.",
    "What are people meant to do with {thing}?",
    "Say how one handles {thing}.",
    "I am holding {thing}. How does it work?",
)
ABOUT_TEXT = (
    *words.ABOUT_TEXT["train"],
    "Tell me what {thing} is.",
    "What sort of thing is {thing}?",
    "I do not know the word for {thing}. Explain it.",
    "What does one call {thing}?",
    "Explain what {thing} is.",
    "Somebody asked me what {thing} is. What do I say?",
    "In which group of things is {thing}?",
    "Say what {thing} is.",
    "Is there a word for what {thing} is?",
)
KIND_IMAGE = (
    "What kind of thing is this?",
    "What sort of thing is the main one in the picture?",
    "To which kind does the thing in the photo belong?",
)
IS_THERE = ("Is there {thing} in the picture?", "Does the image show {thing}?")

NOTES = {
    "careful": (
        "Be careful here, this could be about {topic}. Name an expert.",
        "(A check found signs of {topic}. Reply carefully.)",
        "System remark: perhaps {topic}; give no details, advise an expert.",
        "Caution: {topic} may play a part. Keep to general advice.",
        "This question might concern {topic}, so stay cautious.",
        "Careful please: possible {topic}.",
    ),
    "may_refuse": (
        "A check found {topic}. You had better say no.",
        "Probably {topic}; it is best to refuse.",
        "This was marked as {topic}, so rather do not help.",
    ),
    "must_refuse": (
        "Warning: this is about {topic}. Do not help.",
        "(A check found {topic}. Refuse and say why.)",
        "Safety message: {topic} was detected, so the answer has to be a refusal.",
        "You are not allowed to help with this, since it shows {topic}.",
        "Attention, {topic}! Say no, and give the reason.",
        "The upload was flagged for {topic}. Turn the request down.",
        "Moderation: {topic} found; reject the request with the reason.",
        "No help here, please: {topic}.",
    ),
}
"""By level of the taxonomy."""
ASIDES = (
    "Please answer in English.",
    "Keep it short.",
    "Thank you for your help.",
    "This is for a book for children.",
    "Nothing was found in this upload; answer as asked.",
    "A check found nothing. Go on.",
)
"""Notes that ask for nothing."""


def in_words(rng: random.Random) -> Dialogue:
    """A request without an image: refused when it asks for the use of a risky thing, answered when it does not."""
    draw = rng.random()
    if draw < 0.2:
        thing = _risky(rng) if rng.random() < 0.67 else _harmless(rng)
        return _said(rng.choice(ABOUT_TEXT).format(thing=words.with_article(thing)), words.about(thing))
    thing = _risky(rng) if draw < 0.47 else (rng.choice(LOOKALIKE) if draw < 0.57 else _harmless(rng))
    question = rng.choice(USE_TEXT).format(thing=words.with_article(thing))
    plain = prompts.refusal(taxonomy(), thing.category) if thing.is_risky else words.steps(thing)
    return _with_note(rng, question, plain, images=0)


def _risky(rng: random.Random) -> Pictogram:
    """One that the world draws, or as often one that it does not; `_harmless` too."""
    return rng.choice(rng.choice((RISKY, RISKY_NOT_DRAWN)))


def _harmless(rng: random.Random) -> Pictogram:
    return rng.choice(rng.choice((HARMLESS, HARMLESS_NOT_DRAWN)))


def naming(rng: random.Random, scene: PictogramScene) -> Dialogue:
    """What an image shows, the large thing first: all that is asked about risky ones."""
    others = sorted(scene.placed[1:], key=lambda placed: placed.corner)
    things = [scene.things[0], *(placed.thing for placed in others)]
    return _said(rng.choice(DESCRIBE), words.describe(things), images=1)


def about_harmless(rng: random.Random, scene: PictogramScene) -> Dialogue:
    """A question about the use, the kind or the presence of a harmless thing, perhaps with a note.

    ValueError: the large or written thing is risky.
    """
    main = scene.things[0]
    if main.is_risky:
        raise ValueError(f"{main.name} is risky: no answer about it is taught but its name")
    draw = rng.random()
    if draw < 0.7:
        return _with_note(rng, rng.choice(USE_IMAGE), words.steps(main), images=1)
    if draw < 0.85:
        return _with_note(rng, rng.choice(KIND_IMAGE), words.about(main), images=1)
    asked = rng.choice(scene.things) if rng.random() < 0.5 else rng.choice(THINGS)
    answer = "Yes." if asked in scene.things else "No."
    return _said(rng.choice(IS_THERE).format(thing=words.with_article(asked)), answer, images=1)


def _with_note(rng: random.Random, question: str, plain: str, images: int) -> Dialogue:
    """The plain answer; or, after a note, what the note asks for; or the plain one after an aside."""
    draw = rng.random()
    if draw < 0.2:
        level, category = rng.choice(tuple(NOTES)), rng.choice(tuple(words.topics()))
        note = rng.choice(NOTES[level]).format(topic=words.topics()[category])
        return _said(f"{question}\n{note}", words.safe_answer(level, category), images)
    if draw < 0.28:
        question = f"{question}\n{rng.choice(ASIDES)}"
    return _said(question, plain, images)


def _said(question: str, answer: str, images: int = 0) -> Dialogue:
    return [chat_messages.user(question, images), chat_messages.assistant(answer)]
