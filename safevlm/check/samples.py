"""Records as the model will see them: image slots against tokens, lengths, and the tokens that are learned.

Encoded one by one with the collator of training, without its length limit, so that what the limit cuts is seen.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from llava_patch.classes import Processor
from safevlm.backbones import table
from safevlm.check.lazy_parts import one_line
from safevlm.data import chat
from safevlm.data.collate import IGNORED, Collator, columns_before_labels
from safevlm.data.pixels import slot_id
from safevlm.data.records import Record
from safevlm.taxonomy import Taxonomy

WITHOUT_LIMIT = 2**31
OPEN, CLOSE = "⟦", "⟧"
"""Around the tokens that are learned."""


@dataclass(frozen=True)
class EncodedRecord:
    """One record's row, on the CPU."""

    record: Record
    ids: Tensor
    """(t,)"""
    labels: Tensor
    """(t,), `IGNORED` where nothing is learned."""
    pixels: str
    """Shape of the images' tensor, or of each image's where images differ."""
    image_tokens: int

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def learned(self) -> int:
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Sampled:
    rows: tuple[EncodedRecord, ...]
    slots: tuple[str, ...]
    """Records whose image tokens are not what the model expects."""
    cut: tuple[str, ...]
    """Records that `data.max_length` cuts."""
    answers: tuple[str, ...]
    """Records whose learned tokens are not their answers."""
    broken: tuple[str, ...]
    """Records that cannot be encoded."""


def encode(records: Sequence[Record], processor: Processor, slots: int | None, max_length: int) -> Sampled:
    """Encodes the records and compares. `slots`: image tokens that the model takes per image; None: images differ."""
    collator = Collator(processor, WITHOUT_LIMIT)
    rows, wrong, cut, answers, broken = [], [], [], [], []
    for record in tqdm(records, "encoding records", leave=False):
        try:
            row = _encoded(record, collator)
        except ValueError as error:
            broken.append(one_line(error))
            continue
        rows.append(row)
        if slots is not None and row.image_tokens != len(record.images) * slots:
            expected = f"{len(record.images)} x {slots}"
            wrong.append(f"{record.place}: {row.image_tokens} image tokens, the model takes {expected}")
        if row.length > max_length:
            cut.append(f"{record.place}: {row.length} tokens, {row.image_tokens} of them image slots")
        if _plain(_learned_text(row, processor)) != _plain(_answer_text(record, processor)):
            answers.append(f"{record.place}: learns {_learned_text(row, processor)!r}, not its answer")
    return Sampled(tuple(rows), tuple(wrong), tuple(cut), tuple(answers), tuple(broken))


def lengths(rows: Sequence[EncodedRecord]) -> str:
    """Shortest, median and longest; share of image tokens; what is learned."""
    sizes = [row.length for row in rows]
    share = sum(row.image_tokens for row in rows) / sum(sizes)
    learned = [row.learned for row in rows]
    return (
        f"{min(sizes)} to {max(sizes)} tokens, median {statistics.median(sizes):g}; {share:.0%} are image slots; "
        f"{statistics.median(learned):g} are learned (median)"
    )


def columns(rows: Sequence[EncodedRecord], batch: int) -> int:
    """Positions that the LLM is asked about in a batch of such records, at most (`columns_before_labels`)."""
    apart = sum(sorted((row.learned for row in rows), reverse=True)[:batch])
    together = {column for row in rows for column in columns_before_labels(row.labels[None]).tolist()}
    return min(apart, len(together))


def typical(rows: Sequence[EncodedRecord], taxonomy: Taxonomy) -> EncodedRecord:
    """One to show: the first with an image and a risk, else the first with an image, else the first."""
    clean = taxonomy.level_id("safe")
    with_image = [row for row in rows if row.record.images]
    risky = [row for row in with_image if row.record.safe_level not in (None, clean)]
    return (risky or with_image or list(rows))[0]


def shown(row: EncodedRecord, processor: Processor) -> str:
    """The text that the model reads: image slots collapsed, learned tokens in brackets."""
    pieces = []
    for learned, run in itertools.groupby(_marked(row), key=lambda pair: pair[1]):
        text = _text([token for token, _ in run], processor)
        pieces.append(f"{OPEN}{text}{CLOSE}" if learned else text)
    return "".join(pieces)


def verdict(record: Record, taxonomy: Taxonomy) -> str:
    if not record.images:
        return "no image, so the head does not learn from it"
    category = None if record.safe_type is None else taxonomy.category_names[record.safe_type]
    level = None if record.safe_level is None else taxonomy.level_names[record.safe_level]
    return f"category {category or 'unlabelled'}, level {level or 'unlabelled'}"


def _encoded(record: Record, collator: Collator) -> EncodedRecord:
    batch: dict[str, Any] = collator([record])
    ids, pixels = batch["input_ids"][0], batch.get("pixel_values")
    image_tokens = int((ids == slot_id(collator.processor)).sum())
    return EncodedRecord(record, ids, batch["labels"][0], _shape(pixels), image_tokens)


def _shape(pixels: Any) -> str:
    if pixels is None:
        return "none"
    shapes = [pixels] if isinstance(pixels, Tensor) else [image.tensors["pixel_values"] for image in pixels]
    return ", ".join(str(tuple(each.shape)) for each in shapes)


def _marked(row: EncodedRecord) -> Iterator[tuple[int, bool]]:
    return zip(row.ids.tolist(), (row.labels != IGNORED).tolist(), strict=True)


def _text(ids: Sequence[int], processor: Processor) -> str:
    """Decoded, with each run of image tokens as `<image> x N`."""
    image, pieces = slot_id(processor), []
    for is_image, run in itertools.groupby(ids, key=lambda token: token == image):
        tokens = list(run)
        pieces.append(f"{processor.image_token} x {len(tokens)} " if is_image else processor.tokenizer.decode(tokens))
    return "".join(pieces)


def _learned_text(row: EncodedRecord, processor: Processor) -> str:
    return processor.tokenizer.decode(
        row.labels[row.labels != IGNORED], skip_special_tokens=table.of_processor(processor) is not None
    )


def _answer_text(record: Record, processor: Processor) -> str:
    """The answers, as the tokenizer can say them at all: unknown words and spaces come out as they will."""
    tokenizer = processor.tokenizer
    answers = [message for message in record.messages if message["role"] == "assistant"]
    broken = [chat.as_text(processor, message)["content"][0]["text"] for message in answers]
    if table.of_processor(processor) is not None:  # what ends an answer is the template's
        return "".join(broken)
    text = "".join(f" {answer}{tokenizer.eos_token}" for answer in broken)
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(text: str) -> str:
    return "".join(text.split())
