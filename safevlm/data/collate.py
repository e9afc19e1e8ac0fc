"""Records → one padded batch.

input_ids, attention_mask, labels   (b, t)   labels are -100 except on answers
logits_to_keep                      (c,)     positions whose next token has a label in any row: the loss needs no others
pixel_values                        (i, 3, h, w), in the order of the image slots; absent without images
safe_level, safe_type               (b,)     -100 where a record has no label or no image
safety_words, safety_word_mask      (b, w)   words of the request, without hint and answers, for a head that reads text
ids                                 b strings, for errors
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from safevlm.data import chat
from safevlm.data.augment import Augmentation
from safevlm.data.pixels import open_fitting, slot_id
from safevlm.data.records import Record, RecordError

log = logging.getLogger(__name__)

IGNORED = -100
"""Label of what has none: prompt tokens, records without a verdict."""


class RecordDataset(Dataset[Record]):
    """Records by index; images are decoded by the collator."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


@dataclass(frozen=True)
class Collator:
    processor: chat.ChatProcessor
    max_length: int = 2048
    augmentation: Augmentation | None = None
    told: list[str] = field(default_factory=list, compare=False)
    """The first record that was cut, once one was."""

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        encoded = self._encode(records)
        answers = encoded.pop("assistant_masks").bool()
        answers = learned_answers(answers, [record.context for record in records])
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        for row, record in enumerate(records):
            self._check_row(record, ids[row], answers[row])
            self._tell_cut(record, int(mask[row].sum()))
        ids, mask, answers = ids[:, : self.max_length], mask[:, : self.max_length], answers[:, : self.max_length]
        labels = ids.masked_fill(~answers, IGNORED)
        return {
            **encoded,
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": labels,
            "logits_to_keep": columns_before_labels(labels),
            **verdicts(records),
            **words(self.processor, records),
            "ids": [record.id for record in records],
        }

    def _encode(self, records: Sequence[Record]) -> dict[str, Any]:
        images = [
            [open_fitting_of(record, index, self.processor, self.augmentation) for index in range(len(record.images))]
            for record in records
        ]
        return chat.encode_dialogues(self.processor, [record.lm_messages for record in records], images)

    def _check_row(self, record: Record, ids: Tensor, answers: Tensor) -> None:
        if not answers[: self.max_length].any():
            raise RecordError(
                f"{record.place}: no token of an answer within the limit of {self.max_length} tokens (data.max_length, "
                "or the model's positions); shorten the record"
            )
        if (ids[self.max_length :] == slot_id(self.processor)).any():
            raise RecordError(
                f"{record.place}: the limit of {self.max_length} tokens (data.max_length, or the model's positions) "
                "cuts through an image; shorten the record"
            )

    def _tell_cut(self, record: Record, tokens: int) -> None:
        """Once, since `safevlm check` counts them."""
        if tokens > self.max_length and not self.told:
            self.told.append(record.place)
            log.warning(
                "%s: %d tokens are cut at %d, and so are other long records; safevlm check counts them",
                record.place,
                tokens,
                self.max_length,
            )


def learned_answers(answers: Tensor, context: Sequence[int]) -> Tensor:
    """(b, t) bool, True at tokens of answers, without the first answers of each row, `context` of them."""
    begins = answers & ~torch.nn.functional.pad(answers[:, :-1], (1, 0))
    return answers & (begins.cumsum(1) > torch.tensor(context)[:, None])


def columns_before_labels(labels: Tensor) -> Tensor:
    """(b, t) → (c,) positions, ascending, whose next token has a label in any row.

    Here and not on the device, where the number of them would have to be waited for.
    """
    return (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)


def verdicts(records: Sequence[Record]) -> dict[str, Tensor]:
    """`safe_level` and `safe_type`."""
    return {
        "safe_level": _labels([record.safe_level if record.images else None for record in records]),
        "safe_type": _labels([record.safe_type if record.images else None for record in records]),
    }


def words(processor: chat.ChatProcessor, records: Sequence[Record]) -> dict[str, Tensor]:
    """`safety_words` and `safety_word_mask`."""
    rows = [torch.tensor(chat.question_ids(processor, record.messages)) for record in records]
    masks = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return {"safety_words": _padded(rows), "safety_word_mask": _padded(masks)}


def open_fitting_of(
    record: Record, index: int, processor: chat.ChatProcessor, augmentation: Augmentation | None = None
) -> Image:
    """The image of this index in a record, as it is trained on. RecordError: it cannot be used."""
    try:
        image = open_fitting(processor.image_processor, record.images[index])
        return image if augmentation is None else augmentation(image, record, index)
    except ValueError as error:
        raise RecordError(f"{record.place}: {error}") from error


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """(b, longest), on the right, with 0."""
    return pad_sequence(list(rows), batch_first=True)


def _labels(values: Sequence[int | None]) -> Tensor:
    return torch.tensor([IGNORED if value is None else value for value in values])
