"""Training records: LLaVA's `{id, image, conversations}` plus PSA-VLM's optional `safe_type` and `safe_level`.

JSON lists and JSONL are both read, `human/gpt` and `USER/ASSISTANT` too; `image` is a path or a list of paths.
Whatever is wrong with a record is an error that names file, line and fix: nothing is skipped, nothing invented.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.data import chat
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.images import open_image
from safevlm.data.json_rows import RowError, json_rows
from safevlm.data.threads import in_threads
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

IMAGE = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "USER": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "ASSISTANT": "assistant",
    "system": "system",
}
PARTS = ("malicious", "contrastive", "benign")
"""What a record of security tensors is for; SA, TCB and GB in arXiv 2507.20994."""


@dataclass(frozen=True)
class Record:
    """One training sample."""

    id: str
    place: str
    """`file:line` (JSONL) or `file[index]` (JSON), for errors."""
    messages: tuple[chat.Message, ...]
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

    @property
    def lm_messages(self) -> tuple[chat.Message, ...]:
        """The turns as the LLM reads them, the hint among them; `messages` are the user's own."""
        return chat.with_line(self.messages, self.hint) if self.hint else self.messages


class RecordError(RowError):
    """A record that cannot be used; the message starts with its place."""


class SlotError(RecordError):
    """Image slots that do not match the images."""


class AnswerError(RecordError):
    """Nothing to learn from."""


class MissingImageError(RecordError):
    """An image file that is not there."""


class LabelError(RecordError):
    """A category or level that the taxonomy does not have."""


def read_records(files: Sequence[str | Path], taxonomy: Taxonomy, images: str | Path = "") -> list[Record]:
    """All records of all files, in order. Relative image paths start from `images`, or else from their file's folder.

    RecordError: malformed line, unknown label or speaker, no answer, image slots that do not match the images, or a
    missing image file.
    """
    records = [
        parse_record(raw, place, taxonomy, Path(images) if images else Path(file).parent)
        for file in files
        for place, raw in _rows(Path(file))
    ]
    if not records:
        raise RecordError(f"{', '.join(map(str, files))}: no records")
    return records


def parse_record(raw: Any, place: str, taxonomy: Taxonomy, images: Path) -> Record:
    """One JSON object → Record."""
    if not isinstance(raw, dict) or not isinstance(raw.get("conversations"), list):
        raise RecordError(f"{place}: a record needs a list `conversations`")
    paths = tuple(images / path for path in _image_paths(raw, place))
    messages = tuple(_message(turn, place) for turn in raw["conversations"])
    slots = sum(part["type"] == "image" for message in messages for part in message["content"])
    if slots != len(paths):
        raise SlotError(f"{place}: {slots} {IMAGE} in the conversation but {len(paths)} images; they must match")
    if not any(message["role"] == "assistant" and message["content"][0]["text"].strip() for message in messages):
        raise AnswerError(f"{place}: no answer to learn from; a record needs a non-empty gpt/ASSISTANT turn")
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise MissingImageError(f"{place}: no such image file {missing}; set data.images to the folder of the images")
    return Record(
        id=str(raw.get("id", place)),
        place=place,
        messages=messages,
        images=paths,
        safe_type=_label(raw, "safe_type", taxonomy, place),
        safe_level=_label(raw, "safe_level", taxonomy, place),
        source=str(raw.get("source", "")),
        part=_part(raw, place),
    )


def is_clean(record: Record, taxonomy: Taxonomy) -> bool:
    """Labelled as clean, or as safe when it has a level only."""
    if record.safe_type is not None:
        return taxonomy.category_names[record.safe_type] == CLEAN
    return record.safe_level is not None and taxonomy.level_names[record.safe_level] == SAFE


def refuse_placeholders(records: Iterable[Record]) -> None:
    """RecordError at a record whose answer only stands in for one: it trains the head, and must not teach words."""
    for record in records:
        if any(message["content"][0].get("text") == HEAD_ONLY for message in record.messages):
            raise RecordError(f"{record.place}: no answer to learn words from; set loss.lm: 0, or leave this file out")


def verify_images(records: Sequence[Record]) -> None:
    """Decodes every image once, in threads, with a progress bar. RecordError names the first bad one."""

    def check(record: Record) -> None:
        for path in record.images:
            try:
                open_image(path)
            except ValueError as error:
                raise RecordError(f"{record.place}: {error}") from error

    for _ in in_threads(check, records, "checking images", len(records)):
        pass


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from json_rows(path)
    except RowError as error:
        raise RecordError(str(error)) from error


def _image_paths(raw: dict[str, Any], place: str) -> list[str]:
    image = raw.get("image")
    paths = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise RecordError(f"{place}: `image` must be a path or a list of paths, not {image!r}")
    return paths


def _message(turn: Any, place: str) -> chat.Message:
    """A turn as a chat message; the image slots of a user's turn move to its front, as LLaVA's training has them."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise RecordError(f"{place}: a turn needs `from` and a text `value`, not {turn!r}")
    role = ROLES.get(str(turn.get("from", "")))
    if role is None:
        raise RecordError(f"{place}: unknown speaker {turn.get('from')!r}; one of {sorted(ROLES)}")
    text = turn["value"]
    if role == "user":
        return chat.user(text.replace(IMAGE, "").strip(), text.count(IMAGE))
    if IMAGE in text:
        raise RecordError(f"{place}: {IMAGE} in a turn of {turn['from']!r}; images belong to the user's turns")
    return chat.assistant(text) if role == "assistant" else chat.system(text)


def _part(raw: dict[str, Any], place: str) -> str:
    part = raw.get("part")
    if part is not None and part not in PARTS:
        raise LabelError(f"{place}: unknown part {part!r}; one of {list(PARTS)}")
    return part or ""


def _label(raw: dict[str, Any], field: str, taxonomy: Taxonomy, place: str) -> int | None:
    if raw.get(field) is None:
        return None
    try:
        return (taxonomy.category_id if field == "safe_type" else taxonomy.level_id)(raw[field])
    except ValueError as error:
        raise LabelError(f"{place}: {error}") from error
