"""Whole conversations of a family other than LLaVA, and which of their tokens are answers.

Families' templates do not mark answers. Where one begins and ends is told by rendering the conversation up to there
and comparing: a template whose beginning hangs on what follows is refused, not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.row import Backbone
from safevlm.data.chat_messages import Message
from safevlm.data.rendering import as_text, expanded, rendered, writes_first_token


def encode(
    backbone: Backbone, processor: Any, dialogues: Sequence[Sequence[Message]], images: Sequence[Sequence[Image]]
) -> dict[str, Any]:
    """As `safevlm.data.chat.encode_dialogues`. ValueError: an answer that cannot be found in the text."""
    read = [backbone.read(processor, own) for own in images]
    held = [[image.placeholder for image in own] for own in read]
    cleaned = [[as_text(processor, message) for message in messages] for messages in dialogues]
    texts = [expanded(processor, rendered(processor, own), places) for own, places in zip(cleaned, held, strict=True)]
    encoded = processor.tokenizer(
        texts,
        add_special_tokens=not writes_first_token(processor, texts),
        padding=True,
        padding_side="right",
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    spans = [list(_answers(processor, *row)) for row in zip(cleaned, held, texts, strict=True)]
    found = {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "assistant_masks": torch.stack([_inside(*row) for row in zip(encoded["offset_mapping"], spans, strict=True)]),
    }
    shown = ImageInputs(image for own in read for image in own)
    return found | ({"pixel_values": shown, "images_per_row": torch.tensor(list(map(len, read)))} if shown else {})


def _answers(
    processor: Any, messages: Sequence[Message], placeholders: Sequence[str], text: str
) -> Iterator[tuple[int, int]]:
    """Where in the text each answer stands, its end token included."""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(processor, list(messages[:turn]), add_generation_prompt=True)
        upto = rendered(processor, list(messages[: turn + 1])).rstrip()
        images = sum(part["type"] == "image" for earlier in messages[:turn] for part in earlier["content"])
        start, end = (expanded(processor, part, placeholders[:images]) for part in (before, upto))
        if not (end.startswith(start) and text.startswith(end)):
            raise ValueError(
                "the chat template of this processor writes a conversation otherwise when it goes on, so that its "
                "answers cannot be told from its questions; train on single questions, or give it another template"
            )
        yield len(start), len(end)


def _inside(offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """(t, 2) first and last letter of each token → (t,): 1 where it stands in a span."""
    first, last = offsets.unbind(1)
    inside = [(first >= start) & (last <= end) & (first < last) for start, end in spans]
    return torch.stack(inside).any(0).long() if inside else torch.zeros_like(first)
