"""Training records: a conversation about images and, if known, its labels: PSA-VLM's `safe_type` and `safe_level`.

`safevlm.data.conversations` has the layouts. Whatever is wrong with a record is an error that names file, line and fix:
nothing is skipped, nothing invented.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.data import chat_messages, label_keys, packed_images
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.conversations import IMAGE, ConversationError, ImageRef, read_conversation
from safevlm.data.dialogues import ASSISTANT, SYSTEM, USER, Said, answer_fault, order_fault
from safevlm.data.images import ImageError, is_animated, is_there, open_image
from safevlm.data.json_rows import RowError
from safevlm.data.record_rows import record_rows
from safevlm.data.threads import in_threads
from safevlm.taxonomy import Taxonomy, contradiction
from safevlm.taxonomy import is_clean as labels_are_clean

log = logging.getLogger(__name__)

PARTS = ("malicious", "contrastive", "benign")
"""What a record of security tensors is for; SA, TCB and GB in arXiv 2507.20994."""
MESSAGES: Mapping[str, Callable[[Said], chat_messages.Message]] = {
    USER: lambda said: chat_messages.user(said.text, said.images),
    ASSISTANT: lambda said: chat_messages.assistant(said.text),
    SYSTEM: lambda said: chat_messages.system(said.text),
}
"""A turn as a chat message; the image slots of a user's turn move to its front, as LLaVA's training has them."""


@dataclass(frozen=True)
class Record:
    """One training sample."""

    id: str
    place: str
    """`file:line` (JSONL) or `file[index]` (JSON), for errors."""
    messages: tuple[chat_messages.Message, ...]
    images: tuple[Path, ...] = ()
    safe_type: int | None = None
    """Category id; None: unlabelled, the head's terms skip it."""
    safe_level: int | None = None
    """Level id, likewise."""
    source: str = ""
    """Where a mix took it from."""
    part: str = ""
    """One of PARTS in the data of security tensors (`safevlm.data.pairs`); empty elsewhere."""
    hint: str = ""
    """A safety prompt below the last question, for the LLM alone: it follows from the labels that the head learns."""
    context: int = 0
    """So many answers, the first ones, were given earlier: they are read, and not learned."""

    @property
    def lm_messages(self) -> tuple[chat_messages.Message, ...]:
        """The turns as the LLM reads them, the hint among them; `messages` are the user's own."""
        return chat_messages.with_line(self.messages, self.hint) if self.hint else self.messages


class RecordError(RowError):
    """A record that cannot be used; the message starts with its place."""


class SlotError(RecordError):
    """Image slots that do not match the images."""


class AnswerError(RecordError):
    """Nothing to learn from, or an empty answer among others."""


class DialogueError(RecordError):
    """Turns that do not alternate, or a question of nothing."""


class MissingImageError(RecordError):
    """An image file that is not there."""


class LabelError(RecordError):
    """A category or level that the taxonomy does not have, two that contradict each other, or a misspelt key."""


def read_records(files: Sequence[str | Path], taxonomy: Taxonomy, images: str | Path = "") -> list[Record]:
    """All records of all files, in order. Relative image paths start from `images`, or else from their file's folder.

    RecordError: malformed line, unknown, contradictory or misspelt label, unknown speaker, turns that do not alternate,
    an empty answer or none, image slots that do not match the images, or a missing image file.
    """
    records = [record for file in files for record in stream_records(Path(file), taxonomy, images)]
    if not records:
        raise RecordError(f"{', '.join(map(str, files))}: no records")
    return records


def stream_records(file: Path, taxonomy: Taxonomy, images: str | Path = "") -> Iterator[Record]:
    """The records of one file, one at a time. RecordError: as `read_records`."""
    folder, packed = Path(images) if images else file.parent, packed_images.folder_of(file)
    for place, raw in row_reader(file):
        yield parse_record(raw, place, taxonomy, folder, packed)


def row_reader(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a record file. RecordError: not what its ending says."""
    try:
        yield from record_rows(file)
    except RowError as error:
        raise RecordError(str(error)) from error


def parse_record(raw: Any, place: str, taxonomy: Taxonomy, images: Path, packed: Path | None = None) -> Record:
    """One JSON object → Record. Images that it holds as bytes become files of `packed`."""
    try:
        told = read_conversation(raw)
    except ConversationError as error:
        raise RecordError(f"{place}: {error}") from error
    turns = [turn.said() for turn in told.turns]
    _check(DialogueError, order_fault(turns), place)
    slots = sum(turn.images for turn in turns)
    if slots != len(told.images):
        raise SlotError(f"{place}: {slots} {IMAGE} in the conversation but {len(told.images)} images; they must match")
    _check(AnswerError, answer_fault(turns), place)
    category, level = label_ids(raw, taxonomy, place)
    return Record(
        id=str(place if raw.get("id") is None else raw["id"]),
        place=place,
        messages=tuple(MESSAGES[turn.role](turn) for turn in turns),
        images=tuple(_file(image, place, images, packed) for image in told.images),
        safe_type=category,
        safe_level=level,
        source=str(raw.get("source") or ""),
        part=_part(raw, place),
    )


def is_clean(record: Record, taxonomy: Taxonomy) -> bool:
    """Labelled as clean, or as safe when it has a level only."""
    return labels_are_clean(*taxonomy.names_of(record.safe_type, record.safe_level))


def refuse_placeholders(records: Iterable[Record]) -> None:
    """RecordError at a record whose answer only stands in for one: it trains the head, and must not teach words."""
    for record in records:
        if any(message["content"][0].get("text") == HEAD_ONLY for message in record.messages):
            raise RecordError(f"{record.place}: no answer to learn words from; set loss.lm: 0, or leave this file out")


def verify_images(records: Sequence[Record]) -> None:
    """Decodes every image once, in threads, with a progress bar. RecordError names the first bad one.

    A warning counts the records with animations, of which the model is trained on the first frame.
    """

    def check(record: Record) -> bool:
        for path in record.images:
            try:
                open_image(path)
            except ValueError as error:
                raise RecordError(f"{record.place}: {error}") from error
        return any(is_animated(path) for path in record.images)

    found = in_threads(check, records, "checking images", len(records))
    moving = [record for record, is_moving in zip(records, found, strict=True) if is_moving]
    if moving:
        log.warning(
            "%d of %d records hold images of several frames or pages (%s first): only the first frame is trained on, "
            "which is what the model sees in chat; leave out those whose label is about another one",
            len(moving),
            len(records),
            moving[0].place,
        )


def _check(kind: type[RecordError], fault: str, place: str) -> None:
    if fault:
        raise kind(f"{place}: {fault}")


def _file(image: ImageRef, place: str, images: Path, packed: Path | None) -> Path:
    if isinstance(image, str):
        path = images / image
        if not is_there(path):
            raise MissingImageError(f"{place}: no such image file {path}; set data.images to the folder of the images")
        return path
    if packed is None:
        raise RecordError(f"{place}: an image as bytes, where only paths can be read; save it as a file")
    try:
        return packed_images.store(image, f"{place}: image", packed)
    except ImageError as error:
        raise RecordError(str(error)) from error
    except OSError as error:
        raise RecordError(f"{place}: its image cannot be unpacked to {packed}: {error}; copy the file there") from error


def _part(raw: dict[str, Any], place: str) -> str:
    part = raw.get("part")
    if part is not None and part not in PARTS:
        raise LabelError(f"{place}: unknown part {part!r}; one of {list(PARTS)}")
    return part or ""


def label_ids(raw: Mapping[str, Any], taxonomy: Taxonomy, place: str) -> tuple[int | None, int | None]:
    """Ids of category and level; None: not labelled. LabelError."""
    _check(LabelError, label_keys.misspelt(raw, taxonomy.category_names, taxonomy.level_names), place)
    category, level = raw.get(label_keys.TYPE), raw.get(label_keys.LEVEL)
    try:
        ids = (
            None if category is None else taxonomy.category_id(category),
            None if level is None else taxonomy.level_id(level),
        )
    except ValueError as error:
        raise LabelError(f"{place}: {error}") from error
    _check(LabelError, contradiction(*taxonomy.names_of(*ids)), place)
    return ids
