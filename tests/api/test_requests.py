"""Requests: what may be given, what it becomes, and that what is not understood is an error, never another question."""

from __future__ import annotations

import base64
import dataclasses
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from safevlm.data import chat
from safevlm.data.images import ImageError, open_image
from safevlm.types import Generation, Request
from tests.engine import engines
from tests.training import workshop

PAIRS = (("What is it?", "A cup."), ("Big?", "Yes."))
PICTURE = Image.new("RGB", (8, 6), (200, 30, 10))


def _png() -> bytes:
    file = BytesIO()
    PICTURE.save(file, "png")
    return file.getvalue()


URI = f"data:image/png;base64,{base64.b64encode(_png()).decode()}"


def user(text: str, *uris: str) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": uri, "detail": "low"}} for uri in uris]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def says(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


TALK = [says("user", "What is it?"), says("assistant", "A cup."), says("user", "Big?"), says("assistant", "Yes.")]


# --- messages ---------------------------------------------------------------------------------------------------------


def test_messages_and_pairs_are_the_same_request() -> None:
    pairs = Request("Red?", history=PAIRS, system="Be brief.")
    assert Request("Red?", history=[says("system", "Be brief."), *TALK]) == pairs
    assert Request.from_messages([says("developer", "Be brief."), *TALK, says("user", "Red?")]) == pairs
    assert Request("Red?", history=[list(pair) for pair in PAIRS], system="Be brief.") == pairs  # as JSON has them


def test_null_fields_of_a_message_count_as_absent() -> None:
    answer = {"role": "assistant", "content": "A cup.", "tool_calls": None, "refusal": None}
    assert Request("Red?", history=[TALK[0], answer]) == Request("Red?", history=PAIRS[:1])


def test_parts_of_text_are_joined_as_the_chat_template_joins_them() -> None:
    parts = [{"type": "text", "text": "Look."}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}]
    processor = workshop.processor()
    prompt = processor.apply_chat_template(messages, chat_template=chat.CHAT_TEMPLATE, add_generation_prompt=True)
    assert chat.prompt_text(processor, Request.from_messages(messages)) == prompt


@pytest.mark.parametrize("images", [0, 1, 2])
def test_images_of_the_first_question_are_the_request_that_pairs_give(images: int) -> None:
    uris = [URI] * images
    told = Request.from_messages([user("What is it?", *uris), *TALK[1:], says("user", "Red?")])
    assert told == Request("Red?", uris, history=PAIRS), "the same conversation has two forms, so two prompts"


@pytest.mark.parametrize("images", [0, 1, 2])
def test_images_beside_messages_belong_to_the_question_that_they_come_with(images: int) -> None:
    uris = [URI] * images
    told = Request.from_messages([*TALK, user("Red?", *uris)])
    assert Request("Red?", uris, history=TALK) == told
    assert Request("Red?", uris, history=TALK).turns[-1] == ("Red?", images)
    assert Request("Red?", uris, history=PAIRS).turns[0] == ("What is it?", images)
    assert Request("Red?", uris, history=[says("system", "Be brief.")]) == Request("Red?", uris, system="Be brief.")


def test_each_turn_has_its_own_images_in_the_prompt() -> None:
    processor = engines.engine("none").processor
    messages = [user("One?", URI), says("assistant", "Yes."), user("Two?", URI, URI), says("assistant", "No.")]
    request = Request.from_messages([*messages, user("Three?", URI)])
    assert chat.prompt_text(processor, request) == (
        "USER: <image>\nOne? ASSISTANT: Yes.</s>USER: <image>\n<image>\nTwo? ASSISTANT: No.</s>"
        "USER: <image>\nThree? ASSISTANT:"
    )
    assert Request("Three?", history=messages).turns == (("One?", 1), ("Two?", 2), ("Three?", 0))
    changed = dataclasses.replace(request, text="Why?")
    assert changed.images_per_turn == request.images_per_turn and changed.images == request.images


def test_images_of_every_turn_reach_the_model() -> None:
    engine = engines.engine("none")
    request = Request.from_messages([user("One?", URI), says("assistant", "Yes."), user("Two?", URI)])
    with engines.watched(engine) as asked:
        engine.reply(request, engines.SHORT)
    assert asked.image_slots() == [2 * engine.loaded.safe_llava.slots]


BAD_MESSAGES: dict[str, tuple[list[Any], str]] = {
    "unknown role": ([says("tool", "x")], r"messages\[0\].*'tool'"),
    "no role": ([{"content": "x"}], r"messages\[0\].*None"),
    "tool calls": ([TALK[0], {**TALK[1], "tool_calls": [{}]}, TALK[2]], r"messages\[1\].*tool_calls"),
    "a name": ([{**TALK[0], "name": "Ann"}], r"messages\[0\].*name"),
    "late system": ([TALK[0], TALK[1], says("system", "x"), TALK[2]], r"messages\[2\].*first"),
    "two users": ([TALK[0], TALK[2]], r"messages\[1\].*in a row"),
    "assistant first": ([TALK[1], TALK[2]], r"messages\[0\].*follow"),
    "assistant last": (TALK, "last one"),
    "nothing": ([], "last one"),
    "no content": ([{"role": "user"}], r"messages\[0\].content"),
    "empty": ([says("user", "")], r"messages\[0\].*empty"),
    "unknown part": ([{"role": "user", "content": [{"type": "input_audio"}]}], r"messages\[0\].content\[0\].*audio"),
    "part is text": ([{"role": "user", "content": ["What?"]}], r"messages\[0\].content\[0\]"),
    "key of a part": (
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}],
        r"content\[0\].*cache_control",
    ),
    "remote": ([TALK[0], TALK[1], user("x", "https://example.org/a.png")], r"messages\[2\].content\[0\].*fetched"),
    "a file": ([user("x", "/etc/hosts")], r"messages\[0\].content\[0\].*disk"),
    "image of the assistant": ([TALK[0], {**user("x", URI), "role": "assistant"}, TALK[2]], r"messages\[1\].*image"),
    "image_url is text": ([{"role": "user", "content": [{"type": "image_url", "image_url": URI}]}], "image_url"),
    "a pair": ([("What?", "A cup."), TALK[0]], r"messages\[0\]"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_message_that_is_not_understood_is_an_error_that_names_it(name: str) -> None:
    messages, told = BAD_MESSAGES[name]
    with pytest.raises((TypeError, ValueError), match=told) as caught:
        Request.from_messages(messages)
    assert len(str(caught.value)) < 400, "a data URI stands in the error"


BAD_HISTORY: dict[str, tuple[Any, str]] = {
    "a text": ("What is it?", "history"),
    "one message": (TALK[0], "history"),
    "a triple": ([("a", "b", "c")], r"history\[0\]"),
    "no texts": ([("a", "b"), ("a", None)], r"history\[1\]"),
    "two letters": (["ab"], r"history\[0\]"),
    "mixed": ([*PAIRS, TALK[0]], r"history: messages\[0\]"),
    "ends with a question": (TALK[:3], r"history: messages\[2\].*from_messages"),
    "unknown role": ([says("bot", "x")], r"history: messages\[0\].*'bot'"),
}


@pytest.mark.parametrize("name", BAD_HISTORY)
def test_a_history_that_is_not_understood_is_an_error(name: str) -> None:
    history, told = BAD_HISTORY[name]
    with pytest.raises((TypeError, ValueError), match=told):
        Request("Red?", history=history)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"text": 3}, "text"),
        ({"text": "x", "images": "a.png"}, r"images=\(image,\)"),
        ({"text": "x", "images": PICTURE}, r"images=\(image,\)"),
        ({"text": "x", "images": numpy.zeros((2, 2), numpy.uint8)}, r"images=\(image,\)"),
        ({"text": "x", "images": [URI], "history": [user("y", URI), TALK[1]]}, "given twice"),
        ({"text": "x", "system": "a", "history": [says("system", "b"), *TALK]}, "given twice"),
        ({"text": "x", "images": [URI], "images_per_turn": (1, 1)}, "images_per_turn"),
        ({"text": "x", "images": [URI], "images_per_turn": (2,)}, "images_per_turn"),
    ],
)
def test_fields_that_contradict_are_errors(fields: dict[str, Any], told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        Request(**fields)


# --- images -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_is_the_same_image(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    PICTURE.save(file)
    sources = [file, str(file), PICTURE, _png(), URI, numpy.asarray(PICTURE)]
    assert {open_image(source).tobytes() for source in sources} == {PICTURE.tobytes()}


def test_a_grey_array_is_a_grey_image() -> None:
    pixels = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)
    assert numpy.asarray(open_image(pixels)).tolist() == numpy.stack([pixels] * 3, 2).tolist()


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "floats": (numpy.zeros((4, 4, 3)), "float64"),
    "channels first": (numpy.zeros((3, 4, 4), numpy.uint8), r"\(3, 4, 4\)"),
    "alpha": (numpy.zeros((4, 4, 4), numpy.uint8), r"\(4, 4, 4\)"),
    "a batch": (numpy.zeros((1, 4, 4, 3), numpy.uint8), r"\(1, 4, 4, 3\)"),
    "no pixels": (numpy.zeros((0, 4, 3), numpy.uint8), r"\(0, 4, 3\)"),
    "a number": (7, "int"),
    "an address": ("https://example.org/a.png", "not fetched"),
    "a file address": ("file:///a.png", "not fetched"),
    "no bytes": (b"", "empty"),
    "words": (b"no image", "not an image"),
    "not base64": ("data:image/png,abc", "base64"),
    "broken base64": ("data:image/png;base64,a?b", "base64"),
    "a truncated one": (URI[: len(URI) - 64], "image/png"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_is_none_is_an_error_that_says_why(name: str) -> None:
    source, told = BAD_IMAGES[name]
    with pytest.raises(ImageError, match=told):
        open_image(source)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "0"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", None),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_generation_names_the_field_that_is_wrong(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        Generation(**{field: value})


def test_generation_takes_what_is_allowed() -> None:
    assert Generation(1, 0, 1, 2**63 - 1).top_p == 1


def test_top_p_narrows_the_draw() -> None:
    engine, request = engines.engine("none"), Request("What is it?", (engines.image(),))

    def sampled(top_p: float) -> set[str]:
        how = [Generation(6, temperature=1.0, top_p=top_p, seed=seed) for seed in range(4)]
        return {engine.reply(request, each).text for each in how}

    assert len(sampled(1.0)) > 1 and sampled(1e-6) == {engine.reply(request, engines.SHORT).text}
