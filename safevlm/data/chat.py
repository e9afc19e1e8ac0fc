"""The only prompt builder: turns → the text that a model reads, and which tokens of it are the answer.

LLaVA-v1.5 is written to by the template beside this file, every other family by its processor's own.

The template writes the same prompt as the published llava-1.5-*-hf checkpoints (`USER: <image>\\n… ASSISTANT: …`),
closes every answer with the end token, as the original training did, and marks answers with `{% generation %}`, so
that labels never depend on offsets (base facts §3.6). An answer's leading space belongs to the answer: the prompt of
inference ends with `ASSISTANT:`, and the model has to say what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from PIL.Image import Image

from safevlm.backbones import table
from safevlm.data import family_dialogues
from safevlm.data.chat_messages import Message, messages_of
from safevlm.data.pixels import ready_pixels
from safevlm.data.rendering import CHAT_TEMPLATE, as_text, expanded, ids_of, rendered
from safevlm.types import Request

AS_THEY_ARE = {
    **dict.fromkeys(("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"), False),
    "input_data_format": "channels_first",
}
"""For pixels that are ready: the processor counts and stacks them."""


class ChatProcessor(Protocol):
    """A processor of one of transformers' vision-language models, as far as records need to know it."""

    image_token: str
    image_token_id: int
    """Id that fills the image slots of `input_ids`."""
    image_processor: Any


@dataclass(frozen=True)
class Prompt:
    """A request's prompt."""

    text: str
    """Up to and including `ASSISTANT:`, with one `<image>` per image."""
    ids: list[int]
    """The same with all image slots, and with the answer's given beginning."""


def prompt_text(processor: Any, request: Request) -> str:
    """The prompt up to and including `ASSISTANT:`, with one `<image>` per image."""
    return _prompt_texts(processor, [request])[0]


def dialogue_text(processor: Any, messages: Sequence[Message]) -> str:
    """A whole conversation with its answers, with one `<image>` per image."""
    return rendered(processor, list(messages))


def prompt_ids(processor: Any, request: Request, slots: int, answer_prefix: str = "") -> list[int]:
    """Ids of a request's prompt, `slots` image tokens per image; 0 leaves the images out.

    The same ids as the processor makes of prompt and images, without touching the images. `answer_prefix` is how
    the answer begins.
    """
    return prompts(processor, [request], [[processor.image_token * slots] * len(request.images)], answer_prefix)[0].ids


def prompts(
    processor: Any, requests: Sequence[Request], placeholders: Sequence[Sequence[str]], answer_prefix: str = ""
) -> list[Prompt]:
    """`prompt_text` and ids of several requests; template and tokenizer are called once for all of them.

    `placeholders`: of each request, what stands in the prompt in the place of each of its images.
    """
    texts = _prompt_texts(processor, requests)
    filled = [
        expanded(processor, text, own) + _beginning(text, answer_prefix)
        for text, own in zip(texts, placeholders, strict=True)
    ]
    return [Prompt(*both) for both in zip(texts, ids_of(processor, filled), strict=True)]


def _beginning(text: str, answer_prefix: str) -> str:
    """Behind `ASSISTANT:` stands a space, behind a template's line end or token none."""
    return (" " if text.endswith(":") else "") + answer_prefix if answer_prefix else ""


def _prompt_texts(processor: Any, requests: Sequence[Request]) -> list[str]:
    dialogues = [[as_text(processor, message) for message in messages_of(request)] for request in requests]
    return rendered(processor, dialogues, add_generation_prompt=True) if dialogues else []


def question_ids(processor: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of the words that a safety head may read: those of system and user turns, without image slots and answers.

    The one maker of them, in training as at inference. Whatever else the LLM reads (a safety prompt, virtual tokens,
    the answer) is not in `messages`, or is left out here: only risky requests have it, so that it tells the label.
    """
    asked = [as_text(processor, message) for message in messages if message["role"] != "assistant"]
    if table.of_processor(processor) is not None:
        asked = _in_one_turn(asked)
    text = rendered(processor, asked, add_generation_prompt=True)
    # slots are taken out of the ids, not out of the text: line ends that an image stood between can be one token
    return [token for token in ids_of(processor, [text])[0] if token != processor.image_token_id]


def _in_one_turn(asked: Sequence[Message]) -> list[Message]:
    """The questions as one: some families' templates refuse two turns of a user in a row."""
    systems = [message for message in asked if message["role"] != "user"]
    parts = [part for message in asked if message["role"] == "user" for part in message["content"]]
    return [*systems, {"role": "user", "content": parts}]


def encode_dialogues(
    processor: Any, dialogues: Sequence[Sequence[Message]], images: Sequence[Sequence[Image]]
) -> dict[str, Any]:
    """Whole conversations, padded on the right, with `assistant_masks` (b, t): 1 at the tokens of answers.

    Of families other than LLaVA `pixel_values` are `ImageInputs`, and `images_per_row` (b,) stands beside them.
    """
    backbone = table.of_processor(processor)
    if backbone is not None:
        return family_dialogues.encode(backbone, processor, dialogues, images)
    shown: list[Any] = [image for own in images for image in own]
    ready = ready_pixels(processor.image_processor, shown)
    left = iter(ready or shown)
    pairs = zip(dialogues, images, strict=True)
    filled = [_with_images(processor, messages, list(islice(left, len(own)))) for messages, own in pairs]
    encoded = processor.apply_chat_template(
        filled,
        chat_template=CHAT_TEMPLATE,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right", "images_kwargs": AS_THEY_ARE if ready else {}},
    )
    names = ("input_ids", "attention_mask", "assistant_masks", "pixel_values")
    return {name: torch.as_tensor(encoded[name]) for name in names if name in encoded}


def _with_images(processor: Any, messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Puts images, or their pixels, into their slots, in order; the messages themselves are not changed."""
    left = iter(images)
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": next(left)} if part["type"] == "image" else part
                for part in as_text(processor, message)["content"]
            ],
        }
        for message in messages
    ]
