"""LLaVA's instruction data: a JSON list (or JSONL) of `{id, image, conversations}`; rows without `image` are text.

Also reads records of ours, labels and all, so a hand-made JSONL or another mix is a source too, and the `messages` of
other trainers (`safevlm.data.conversations`). `path` is the file; `images` the folder that image paths start from
(default: the file's folder).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safevlm.data import label_keys, packed_images
from safevlm.data.conversations import (
    BESIDE_TURNS,
    IMAGE,
    LONGEST_PATH,
    ROLES,
    ConversationError,
    ImageRef,
    RecordContent,
    read_conversation,
)
from safevlm.data.dialogues import ASSISTANT, SYSTEM, USER
from safevlm.data.images import ImageError, is_plain_name, is_there
from safevlm.data.record_rows import record_rows
from safevlm.data.sources.row import ImageFile, Rows, SourceError, SourceRow, SourceSpec, SourceTally, Turn
from safevlm.data.sources.source import Source
from safevlm.taxonomy import DEFAULT

SPEAKERS = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}
USUAL_SPEAKERS = {name: SPEAKERS[role] for name, role in ROLES.items() if role != SYSTEM}


def files(spec: SourceSpec) -> list[Path]:
    return [spec.path]


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, {})
    for place, raw in record_rows(spec.path):
        tally.add(spec.split)
        yield _usual_row(spec, place, raw) or conversation_row(spec, place, raw, conversation(raw, place))
    return tally.close()


def _usual_row(spec: SourceSpec, place: str, raw: Any) -> SourceRow | None:
    """What nearly all rows are, read in a third of the time: turns of two texts, and images that are there.

    None: something else, or something that is wrong with it.
    """
    try:
        if not _are_usual(tuple(raw)):
            return None
        turns = _usual_turns(raw["conversations"])
        named = raw.get("image", raw.get("images"))
        images = () if named is None else _usual_images(spec, [named] if type(named) is str else named)
    except (AttributeError, KeyError, TypeError):
        return None
    return None if turns is None or images is None else _row(spec, place, raw, turns, images)


@functools.lru_cache(maxsize=4096)
def _are_usual(keys: tuple[str, ...]) -> bool:
    """Whether none of the keys can be a label misspelt, or something beside turns and images."""
    return (
        BESIDE_TURNS.isdisjoint(keys) and all(map(label_keys.is_plain, keys)) and not {"image", "images"} <= set(keys)
    )


def _usual_turns(talk: Iterable[Any]) -> tuple[Turn, ...] | None:
    turns = []
    for turn in talk:
        speaker, text = USUAL_SPEAKERS[turn["from"]], turn["value"]
        if len(turn) != 2 or type(text) is not str or (speaker != "human" and IMAGE in text):
            return None
        turns.append((speaker, text))
    return tuple(turns) or None


def _usual_images(spec: SourceSpec, names: Iterable[Any]) -> tuple[ImageFile, ...] | None:
    folder, found = _folder(spec.path, spec.images), []
    for name in names:
        if type(name) is not str or len(name) > LONGEST_PATH or ":" in name or not is_plain_name(name):
            return None
        file = folder + name
        if not is_there(file):
            return None
        found.append(ImageFile(file))
    return tuple(found)


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
    found = [_file(image, place, spec) for image in told.images]
    missing = [file for file in found if not is_there(file)]
    turns = tuple((SPEAKERS[turn.role], turn.text) for turn in told.turns)
    images = tuple(ImageFile(file) for file in found if file not in missing)
    return _row(spec, place, raw, turns, images, tuple(missing))


def _row(
    spec: SourceSpec,
    place: str,
    raw: dict[str, Any],
    turns: tuple[Turn, ...],
    images: tuple[ImageFile, ...],
    missing: tuple[str, ...] = (),
) -> SourceRow:
    return SourceRow(
        id=str(place.rpartition("/")[2] if raw.get("id") is None else raw["id"]),
        place=place,
        turns=turns,
        images=images,
        missing=missing,
        safe_type=_name(raw.get(label_keys.TYPE)),
        safe_level=_name(raw.get(label_keys.LEVEL)),
        split=str(raw.get("split") or spec.split),
    )


def _file(image: ImageRef, place: str, spec: SourceSpec) -> str:
    if isinstance(image, bytes):
        return _unpacked(image, place, spec.path)
    folder = _folder(spec.path, spec.images)
    return folder + image if is_plain_name(image) else str(Path(folder, image))


@functools.lru_cache(maxsize=64)
def _folder(file: Path, images: str) -> str:
    """With what joins it to a name."""
    return str(file.parent / images / "x")[:-1]


def _unpacked(image: bytes, place: str, file: Path) -> str:
    try:
        return str(packed_images.store(image, f"{place}: image", packed_images.folder_of(file)))
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
