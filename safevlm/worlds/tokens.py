"""Conversations of a drawn world as ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safevlm.data import chat, chat_messages
from safevlm.data.collate import IGNORED
from safevlm.data.rendering import writes_first_token

Tokens = tuple[list[int], list[int]]
"""Ids and labels of a conversation."""
Image = TypeVar("Image")


def tokenize(processor: Any, dialogues: Sequence[list[chat_messages.Message]], placeholder: str) -> list[Tokens]:
    """Ids and labels per dialogue, `placeholder` in the place of each image.

    Labels are the answer, found by character offsets from the end of the text.
    """
    rows = []
    for messages in dialogues:
        text = chat.dialogue_text(processor, messages).rstrip().replace(processor.image_token, placeholder)
        answer = f" {messages[-1]['content'][0]['text']}{processor.tokenizer.eos_token}"
        begins = not writes_first_token(processor, [text])
        encoded = processor.tokenizer(text, add_special_tokens=begins, return_offsets_mapping=True)
        border = len(text) - len(answer)
        ids = encoded["input_ids"]
        labels = [i if end > border else IGNORED for i, (_, end) in zip(ids, encoded["offset_mapping"], strict=True)]
        rows.append((ids, labels))
    return rows


def pad(rows: Sequence[Tokens]) -> dict[str, Tensor]:
    """Ids, labels and mask of conversations, padded on the left."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[0] * (longest - len(i)) + i for i, _ in rows])
    labels = torch.tensor([[IGNORED] * (longest - len(row)) + row for _, row in rows])
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def by_length(talks: Sequence[tuple[Image, Tokens]], size: int) -> list[list[tuple[Image, Tokens]]]:
    """Batches of conversations of about one length, so that little is padding; each with its image."""
    longer_later = sorted(talks, key=lambda talk: len(talk[1][0]))
    return [longer_later[start : start + size] for start in range(0, len(talks), size)]


def answer_loss(head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """(b, t, d) states and (b, t) labels → the loss; words are guessed only where one is taught: most is question."""
    told = labels[:, 1:] != IGNORED
    return F.cross_entropy(head(states[:, :-1][told]), labels[:, 1:][told])
