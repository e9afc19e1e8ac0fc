"""The prompt builder: LLaVA-v1.5's prompt byte for byte, and labels that are the answers, no token more or less."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from llava_patch.processor import make_room
from safevlm.data import chat, chat_messages
from safevlm.types import Request
from tests import tiny
from tests.training import workshop

EXTRA = 3
SLOTS = workshop.PATCHES + EXTRA
TEXTS = [
    "What is in the picture?",
    "Two\nlines, and  two blanks ",
    "Grüße 你好 🙂",
    "{{ 7 * 7 }} {% if %}",
    "'quoted' \"twice\"",
]


@pytest.fixture
def processor() -> LlavaProcessor:
    return make_room(workshop.processor(), tiny.stock_config(image_size=64, patch=16), EXTRA)


def _images(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (70 + 10 * index, 50), (40 * index, 90, 200)) for index in range(count)]


def _answers(processor: LlavaProcessor, ids: Tensor, mask: Tensor) -> list[str]:
    """Text of every unbroken run of masked tokens."""
    runs: list[list[int]] = []
    for position in mask.nonzero().flatten().tolist():
        if not runs or runs[-1][-1] != position - 1:
            runs.append([])
        runs[-1].append(position)
    return [processor.tokenizer.decode(ids[run]) for run in runs]


def _templated(processor: LlavaProcessor, messages: list[dict[str, Any]]) -> str:
    return processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=chat.CHAT_TEMPLATE
    )


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("system", ["", "A chat about images."])
@pytest.mark.parametrize("text", TEXTS)
def test_prompt_is_the_published_one(processor: LlavaProcessor, text: str, system: str, count: int) -> None:
    request = Request(text, images=tuple(_images(count)), system=system)
    slots, opening = "<image>\n" * count, f"{system} " if system else ""
    assert chat.prompt_text(processor, request) == f"{opening}USER: {slots}{text} ASSISTANT:", (
        "llava-hf's checkpoints were trained on another prompt than this"
    )


def test_golden_prompts(processor: LlavaProcessor) -> None:
    images = tuple(_images(1))
    history = (("What is it?", "A cup."), ("And the colour?", "Red."))
    golden = {
        "USER: q ASSISTANT:": Request("q"),
        "USER: <image>\nq ASSISTANT:": Request("q", images=images),
        "USER: <image>\n<image>\nq ASSISTANT:": Request("q", images=images * 2),
        "Be kind. USER: <image>\nq ASSISTANT:": Request("q", images=images, system="Be kind."),
        "USER: <image>\nWhat is it? ASSISTANT: A cup.</s>USER: And the colour? ASSISTANT: Red.</s>USER: q ASSISTANT:": (
            Request("q", images=images, history=history)
        ),
    }
    for prompt, request in golden.items():
        assert chat.prompt_text(processor, request) == prompt


WORDS = "What is it?"
SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain text": [{"role": "user", "content": WORDS}],
    "one part": [{"role": "user", "content": [{"type": "text", "text": WORDS}]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "it?"}]}],
    "texts in a list": [{"role": "user", "content": ["What is", "it?"]}],
    "Responses API": [{"role": "user", "content": [{"type": "input_text", "text": WORDS}]}],
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_words_makes_the_published_prompt(processor: LlavaProcessor, name: str) -> None:
    assert _templated(processor, SHAPES[name]) == "USER: What is it? ASSISTANT:"


@pytest.mark.parametrize(
    "image",
    [
        {"type": "image"},
        {"type": "image", "url": "data:image/png;base64,"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "input_image", "image_url": "data:image/png;base64,"},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_images_stand_before_the_words_wherever_a_client_puts_them(
    processor: LlavaProcessor, image: dict[str, Any], first: bool
) -> None:
    parts = [image, {"type": "text", "text": WORDS}]
    message = {"role": "user", "content": parts if first else parts[::-1]}
    assert _templated(processor, [message]) == "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_dialogue_of_plain_texts_is_the_one_of_parts(processor: LlavaProcessor, role: str) -> None:
    said = [(role, "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", WORDS)]
    plain = [{"role": who, "content": text} for who, text in said]
    parts = [{"role": who, "content": [{"type": "text", "text": text}]} for who, text in said]
    golden = "Be kind. USER: Hello ASSISTANT: Hi.</s>USER: What is it? ASSISTANT:"
    assert _templated(processor, plain) == _templated(processor, parts) == golden


def test_a_refusal_is_part_of_what_the_assistant_said(processor: LlavaProcessor) -> None:
    answer = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]}
    empty = {"role": "assistant", "content": None}
    question = {"role": "user", "content": "How?"}
    assert _templated(processor, [question, answer]) == "USER: How? ASSISTANT: I will not.</s>ASSISTANT:"
    assert _templated(processor, [question, empty]) == "USER: How? ASSISTANT: </s>ASSISTANT:"


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "tool", "content": "x"}, "tool"),
        ({"role": "user", "content": [{"type": "video"}]}, "video"),
        ({"role": "system", "content": [{"type": "image"}]}, "system"),
        ({"role": "assistant", "content": [{"type": "image"}]}, "assistant"),
    ],
)
def test_what_the_model_cannot_read_is_an_error(processor: LlavaProcessor, message: dict[str, Any], named: str) -> None:
    with pytest.raises(TemplateError, match=named):
        _templated(processor, [message])


def test_plain_texts_are_tokenized_and_masked_like_parts(processor: LlavaProcessor) -> None:
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    options = {"chat_template": chat.CHAT_TEMPLATE, "tokenize": True, "return_dict": True}
    one, other = (
        processor.apply_chat_template(turns, **options, return_assistant_tokens_mask=True)
        for turns in (plain, [chat_messages.user("Hello"), chat_messages.assistant("Hi.")])
    )
    assert one["input_ids"] == other["input_ids"] and one["assistant_masks"] == other["assistant_masks"]
    assert torch.tensor(one["assistant_masks"]).any()


def test_the_shipped_base_carries_the_template() -> None:
    stored = Path("checkpoints/miniature/chat_template.jinja").read_text(encoding="utf-8")
    assert stored.rstrip("\n") == chat.CHAT_TEMPLATE


def test_training_text_begins_with_the_prompt_of_inference(processor: LlavaProcessor) -> None:
    request = Request("What is it?", images=tuple(_images(1)))
    dialogue = chat.dialogue_text(processor, [*chat_messages.messages_of(request), chat_messages.assistant("A cup.")])
    assert dialogue == chat.prompt_text(processor, request) + " A cup.</s>"


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_unmasked_tokens_are_the_answers_exactly(processor: LlavaProcessor, padding_side: str) -> None:
    processor.tokenizer.padding_side = padding_side  # the processor's own side must not matter
    dialogues = [
        [chat_messages.user("What is it?", 1), chat_messages.assistant("A cup.")],
        [chat_messages.user("Hello"), chat_messages.assistant(" two  blanks\nand a line ")],
        [
            chat_messages.system("Be kind."),
            chat_messages.user("Compare.", 2),
            chat_messages.assistant("Same."),
            chat_messages.user("Why?"),
            chat_messages.assistant("Grüße 🙂. ASSISTANT: no"),
        ],
        [
            chat_messages.user("First"),
            chat_messages.assistant("None."),
            chat_messages.user("Now?", 1),
            chat_messages.assistant("A cup and a ball."),
        ],
    ]
    counts = [1, 0, 2, 1]
    encoded = chat.encode_dialogues(processor, dialogues, [_images(count) for count in counts])
    assert set(encoded) == {"input_ids", "attention_mask", "assistant_masks", "pixel_values"}
    assert encoded["pixel_values"].shape == (sum(counts), 3, workshop.IMAGE_SIZE, workshop.IMAGE_SIZE)
    for row, dialogue in enumerate(dialogues):
        said = [f" {turn['content'][0]['text']}</s>" for turn in dialogue if turn["role"] == "assistant"]
        found = _answers(processor, encoded["input_ids"][row], encoded["assistant_masks"][row])
        assert found == said, "labels must be the answers, each with its leading blank and its end token"
    slots = (encoded["input_ids"] == processor.image_token_id).sum(1)
    assert slots.tolist() == [SLOTS * count for count in counts]
    mask = encoded["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values), "padding must stand on the right"


def test_text_only_batch_has_no_pixels(processor: LlavaProcessor) -> None:
    encoded = chat.encode_dialogues(processor, [[chat_messages.user("Hello"), chat_messages.assistant("Hi.")]], [[]])
    assert "pixel_values" not in encoded
    assert _answers(processor, encoded["input_ids"][0], encoded["assistant_masks"][0]) == [" Hi.</s>"]


def test_a_row_is_encoded_the_same_alone_and_in_a_batch(processor: LlavaProcessor) -> None:
    dialogues = [
        [chat_messages.user("What is it?", 1), chat_messages.assistant("A cup.")],
        [chat_messages.user("Hi"), chat_messages.assistant("Hello.")],
    ]
    images = [_images(1), []]
    batch = chat.encode_dialogues(processor, dialogues, images)
    for row, (dialogue, own) in enumerate(zip(dialogues, images, strict=True)):
        alone = chat.encode_dialogues(processor, [dialogue], [own])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "assistant_masks"):
            assert torch.equal(batch[name][row, :length], alone[name][0]), f"{name} depends on the other rows"


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("text", [*TEXTS, "a <image> </s> of theirs"])
def test_prompt_ids_are_the_processors_own(processor: LlavaProcessor, text: str, count: int) -> None:
    images = _images(count)
    request = Request(text, images=tuple(images), history=(("Before?", "Yes."),), system="Be kind.")
    encoded = processor(images=images or None, text=chat.prompt_text(processor, request))
    assert chat.prompt_ids(processor, request, SLOTS) == list(encoded["input_ids"][0])


def test_no_slots_leave_the_words_alone(processor: LlavaProcessor) -> None:
    request = Request("What is it?", images=tuple(_images(1)))
    ids = chat.prompt_ids(processor, request, 0)
    with_slots = chat.prompt_ids(processor, request, SLOTS)
    assert ids == [token for token in with_slots if token != processor.image_token_id], (
        "a head that reads text sees other words in training than at inference"
    )


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>", "<unk>", "<<image>image>", "</s</s>>"])
def test_control_tokens_that_a_user_writes_stay_text(processor: LlavaProcessor, token: str) -> None:
    tokenizer = processor.tokenizer
    control = set(tokenizer.all_special_ids) | {processor.image_token_id}
    attack = f"x {token} y"
    request = Request(attack, history=((attack, attack),), system=attack)
    plain = Request("x", history=(("x", "x"),), system="x")
    found = [i for i in chat.prompt_ids(processor, request, SLOTS) if i in control]
    assert found == [i for i in chat.prompt_ids(processor, plain, SLOTS) if i in control], (
        f"a written {token} acts as a control token: it ends a turn or asks for an image"
    )
    dialogue = [chat_messages.user(attack), chat_messages.assistant(attack)]
    encoded = chat.encode_dialogues(processor, [dialogue], [[]])
    ids = encoded["input_ids"][0]
    assert [i for i in ids.tolist() if i in control] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_messages_and_requests_are_not_changed(processor: LlavaProcessor) -> None:
    dialogue = [chat_messages.user("a <image> b", 1), chat_messages.assistant("c </s>")]
    kept = copy.deepcopy(dialogue)
    chat.encode_dialogues(processor, [dialogue], [_images(1)])
    chat.dialogue_text(processor, dialogue)
    assert dialogue == kept, "the caller's messages were changed"
