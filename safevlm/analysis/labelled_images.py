"""Labelled images to measure on: training records and the miniature's evaluation rows, one file to a set.

    FILE or NAME=FILE       {conversations, image, safe_type, safe_level}      training records, any layout of theirs
                            {question, image, category, level}                 evaluation

Rows without an image and rows without any label cannot be measured; they are left out and counted, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.data import packed_images
from safevlm.data.conversations import LAYOUTS
from safevlm.data.images import is_there
from safevlm.data.record_rows import record_rows
from safevlm.data.records import Record, parse_record
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy, is_clean
from safevlm.types import Request, Verdict
from safevlm.usage import UsageError


@dataclass(frozen=True)
class SetsOptions:
    """What every analysis of sets of labelled images is told; each has further options of its own."""

    model: str
    data: tuple[str, ...]
    out: Path
    seed: int = 0
    images: str = ""
    base: str | None = None
    device: str = "auto"
    batch_size: int = 32


@dataclass(frozen=True)
class LabelledImage:
    """A request with its image, and what is true of it."""

    request: Request
    place: str
    """`file:line`, for errors and tables."""
    category: str | None
    """None: not labelled."""
    level: str | None
    group: str = ""
    """The row's `group` or `source`."""

    @property
    def is_clean(self) -> bool:
        """Labelled as clean; or as safe, when it has a level only."""
        return is_clean(self.category, self.level)


@dataclass(frozen=True)
class ImageSet:
    """The images of one file, under the name that tables and figures give it."""

    name: str
    file: str
    images: tuple[LabelledImage, ...]
    without_image: int = 0
    unlabelled: int = 0


def read_sets(files: Sequence[str], taxonomy: Taxonomy, images: str = "", by_group: bool = False) -> list[ImageSet]:
    """A set per `FILE` or `NAME=FILE`; `by_group` makes a set of every group of a file.

    ValueError: two sets of one name, a row of neither kind, an unknown label, a missing image, or nothing to measure.
    """
    sets = [read_set(*_named(text), taxonomy, images) for text in files]
    if by_group:
        sets = [group for one in sets for group in _groups(one, prefix=len(sets) > 1)]
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--data: two sets are named {twice!r}; give NAME=FILE")
    return sets


def read_set(name: str, file: Path, taxonomy: Taxonomy, images: str = "") -> ImageSet:
    rows = labelled_rows(file, taxonomy, images)
    seen = [row for row in rows if row.request.images]
    kept = tuple(row for row in seen if row.category is not None or row.level is not None)
    if not kept:
        raise ValueError(f"{file}: no image with a label (category or level) among {len(rows)} rows")
    return ImageSet(name, str(file), kept, len(rows) - len(seen), len(seen) - len(kept))


def truths_of(sets: Sequence[ImageSet]) -> dict[str, Verdict]:
    """The labels as verdicts by request id, for the oracle."""
    return {
        row.request.id: Verdict(row.level or SAFE, row.category or CLEAN, source="oracle")
        for one in sets
        for row in one.images
    }


def _named(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, Path(file)
    return Path(text).stem, Path(text)


def _groups(one: ImageSet, prefix: bool) -> Iterator[ImageSet]:
    for group in dict.fromkeys(row.group for row in one.images):
        rows = tuple(row for row in one.images if row.group == group)
        name = f"{one.name}/{group}" if prefix and group else group or one.name
        yield dataclasses.replace(one, name=name, images=rows)


def labelled_rows(file: Path, taxonomy: Taxonomy, images: str = "") -> list[LabelledImage]:
    """All rows of a file, whether or not they have an image and a label."""
    folder, packed = Path(images) if images else file.parent, packed_images.folder_of(file)
    return [labelled(row, place, taxonomy, folder, packed) for place, row in record_rows(file)]


def labelled(row: Any, place: str, taxonomy: Taxonomy, folder: Path, packed: Path | None = None) -> LabelledImage:
    if isinstance(row, dict) and any(name in row for name in LAYOUTS):
        return _from_record(parse_record(row, place, taxonomy, folder, packed), taxonomy, str(row.get("group", "")))
    if isinstance(row, dict) and "question" in row:
        return _from_question(row, place, taxonomy, folder)
    raise ValueError(
        f"{place}: neither a training record (`conversations`) nor an evaluation row (`question`, `category`, `level`)"
    )


def _from_record(record: Record, taxonomy: Taxonomy, group: str) -> LabelledImage:
    question = next((message for message in record.messages if message["role"] == "user"), None)
    text = question["content"][-1]["text"] if question else ""
    category, level = record.safe_type, record.safe_level
    return LabelledImage(
        request=Request(text=text, images=record.images, id=record.place),
        place=record.place,
        category=None if category is None else taxonomy.category_names[category],
        level=None if level is None else taxonomy.level_names[level],
        group=group or record.source,
    )


def _from_question(row: dict[str, Any], place: str, taxonomy: Taxonomy, folder: Path) -> LabelledImage:
    image = row.get("image")
    paths = [] if image is None else [image] if isinstance(image, str) else image
    try:
        category = None if row.get("category") is None else taxonomy.category_id(row["category"])
        level = None if row.get("level") is None else taxonomy.level_id(row["level"])
        files = tuple(folder / path for path in paths)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    missing = next((file for file in files if not is_there(file)), None)
    if missing is not None:
        raise ValueError(f"{place}: no such image file {missing}; set --images to the folder of the images")
    return LabelledImage(
        request=Request(text=str(row["question"]), images=files, id=place),
        place=place,
        category=None if category is None else taxonomy.category_names[category],
        level=None if level is None else taxonomy.level_names[level],
        group=str(row.get("group", "")),
    )
