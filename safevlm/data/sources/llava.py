"""LLaVA's instruction data: a JSON list (or JSONL) of `{id, image, conversations}`; rows without `image` are text.

Also reads records of ours, labels and all, so a hand-made JSONL or another mix is a source too, and the `messages` of
other trainers (`safevlm.data.conversations`). `path` is the file; `images` the folder that image paths start from
(default: the file's folder).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from safevlm.data import label_keys, packed_images
from safevlm.data.conversations import ConversationError, RecordContent, read_conversation
from safevlm.data.dialogues import ASSISTANT, SYSTEM, USER
from safevlm.data.images import ImageError, is_there
from safevlm.data.record_rows import record_rows
from safevlm.data.sources.row import ImageFile, Rows, SourceError, SourceRow, SourceSpec, SourceTally
from safevlm.data.sources.source import Source
from safevlm.taxonomy import DEFAULT

SPEAKERS = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}


def files(spec: SourceSpec) -> list[Path]:
    return [spec.path]


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, {})
    for place, raw in record_rows(spec.path):
        tally.add(spec.split)
        yield conversation_row(spec, place, raw, conversation(raw, place))
    return tally.close()


def conversation(raw: Any, place: str) -> RecordContent:
    """SourceError: not one of the layouts, or a label's key misspelt."""
    try:
        told = read_conversation(raw)
    except ConversationError as error:
        raise SourceError(f"{place}: {error}") from error
    wrong = label_keys.misspelt(raw, DEFAULT.category_names, DEFAULT.level_names)
    if wrong:
        raise SourceError(f"{place}: {wrong}")
    return told


def conversation_row(spec: SourceSpec, place: str, raw: dict[str, Any], told: RecordContent) -> SourceRow:
    """A row in one of the layouts of records."""
    folder = _folder(spec.path, spec.images)
    found = [folder / image if isinstance(image, str) else _unpacked(image, place, spec.path) for image in told.images]
    there = list(map(is_there, found))
    return SourceRow(
        id=str(place.rpartition("/")[2] if raw.get("id") is None else raw["id"]),
        place=place,
        turns=tuple((SPEAKERS[turn.role], turn.text) for turn in told.turns),
        images=tuple([ImageFile(path) for path, is_here in zip(found, there, strict=True) if is_here]),
        missing=tuple([str(path) for path, is_here in zip(found, there, strict=True) if not is_here]),
        safe_type=_name(raw.get(label_keys.TYPE)),
        safe_level=_name(raw.get(label_keys.LEVEL)),
        split=str(raw.get("split") or spec.split),
    )


@functools.lru_cache(maxsize=64)
def _folder(file: Path, images: str) -> Path:
    return file.parent / images


def _unpacked(image: bytes, place: str, file: Path) -> Path:
    try:
        return packed_images.store(image, f"{place}: image", packed_images.folder_of(file))
    except (ImageError, OSError) as error:
        raise SourceError(f"{place}: its image cannot be unpacked: {error}") from error


def _name(label: Any) -> str | None:
    return None if label is None else str(label)


SOURCE = Source(
    "llava",
    "LLaVA's instruction data, records of ours, and `messages` of other trainers",
    read,
    files,
    licence="CC BY 4.0 for LLaVA's text; the images have their own",
    keeps_labels=True,
)
