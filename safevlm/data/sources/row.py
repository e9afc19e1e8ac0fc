"""What every source gives, whatever its download looks like: rows of words, images and the source's own labels.

A reader is a generator over the real download folder. It gives the same rows in the same order every time, since a
seed draws them by their number; so that a row is cheap, images are places, not bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safevlm.data.json_rows import RowError

IMAGE = "<image>"
HELD_OUT_SPLITS = frozenset({"test", "eval", "evaluation"})
"""Splits that no training mix may hold."""

Rule = Literal["error", "allow"]
Turn = tuple[str, str]
"""(human or gpt or system, text)."""


class SourceError(RowError):
    """A source that cannot be read as what it is said to be; the message names the source or the place."""


class _ImagePlace(NamedTuple):
    file: str
    member: str


class ImageFile(_ImagePlace):
    """An image file, or one inside a zip (`member` is its name) or a parquet file (`member` is its row).

    A million of them are made and compared: a text is three times as quick as a `Path`.
    """

    __slots__ = ()

    def __new__(cls, path: str | Path, member: str = "") -> ImageFile:
        return super().__new__(cls, os.fspath(path), member)

    @property
    def path(self) -> Path:
        return Path(self.file)

    def __str__(self) -> str:
        return f"{self.file}:{self.member}" if self.member else self.file


class SourceRow(NamedTuple):
    """One row of a source: a conversation about images, or images alone."""

    id: str
    """Unique within the source."""
    place: str
    """`file:line`, for errors."""
    turns: tuple[Turn, ...] = ()
    """The conversation, with one `<image>` per image; empty: images only."""
    images: tuple[ImageFile, ...] = ()
    missing: tuple[str, ...] = ()
    """Names of images that the row speaks of and the download does not have."""
    words: tuple[str, ...] = ()
    """Category and sub-category as the source calls them; the mix's `labels` translate them."""
    safe_type: str | None = None
    safe_level: str | None = None
    """Labels of our own kind, by name, when the source carries them."""
    split: str = "train"

    @property
    def has_answer(self) -> bool:
        return any([speaker == "gpt" and bool(text.strip()) for speaker, text in self.turns])


@dataclass(frozen=True)
class SourceSpec:
    """One entry of a mix's `sources` or `held_out`."""

    name: str
    kind: str
    path: Path
    split: str = "train"
    images: str = ""
    """Folder or zip of the images, below `path`; empty: where the real download has them."""
    captions: str = ""
    """coco: the captions JSON, below `path`."""
    subsets: tuple[str, ...] = ()
    """rtvlm: only these; empty: all that are there."""
    question: tuple[str, ...] = ()
    """Questions for images that come without one, drawn by the mix's seed; empty: neutral ones."""
    answers: Literal["source", "table"] = "source"
    """table: leave the source's answers unused and take the mix's wordings (RTVLM's are keys to score by)."""
    split_file: Path | None = None
    """rtvlm: where the 80/20 split is kept; read when it exists, else written."""
    split_seed: int = 42
    """rtvlm: of that split. Not the mix's seed, so that a new mix does not move the test set."""
    limit: int | None = None
    """At most so many rows, drawn by the mix's seed."""
    missing: Rule = "error"
    """allow: go on without a source that is not on the disk."""
    missing_images: Rule = "error"
    """allow: leave out rows whose image is not in the download, and list them."""
    unusable: Rule = "error"
    """allow: leave out rows whose dialogue or own labels cannot be, and list them."""
    partial: Rule = "error"
    """allow: fewer rows than published."""
    head_only: Rule = "error"
    """allow: rows without an answer train the head (`head_only.jsonl`) and no words."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of a source of a user's own."""
    on_broken: Callable[[str, str], object] | None = field(default=None, hash=False, compare=False)
    """Hears (place, why) of a row that cannot be read, which is then left out; None: an error. No key of mixes."""


@dataclass(frozen=True)
class PublishedCount:
    """How many rows a source is known to have."""

    rows: int
    is_sure: bool = True
    """Counted in the published files; fewer is an error. Otherwise both numbers are only told."""


Counts = dict[str, tuple[int, int | None]]
"""Part of a source → rows found, rows published."""
Rows = Generator[SourceRow, None, Counts]
"""What a reader yields, and at its end returns."""


@dataclass
class SourceTally:
    """Counts what a reader finds, by part; `close` compares with what is published."""

    spec: SourceSpec
    published: Mapping[str, PublishedCount]
    found: dict[str, int] = field(default_factory=dict)

    def add(self, part: str) -> None:
        self.found[part] = self.found.get(part, 0) + 1

    def close(self) -> Counts:
        """The counts; SourceError when there is less than is surely published."""
        for part, count in self.found.items():
            told = self.published.get(part)
            if told and told.is_sure and count < told.rows and self.spec.partial == "error":
                raise SourceError(
                    f"{self.spec.name}: {part}: {count} rows in {self.spec.path}, published are {told.rows}; download "
                    "it again, or set `partial: allow` for this source"
                )
        known = {part: self.published[part].rows if part in self.published else None for part in self.found}
        return {part: (count, known[part]) for part, count in self.found.items()}


def spared(
    spec: SourceSpec, rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Iterable[SourceRow]]
) -> Iterator[SourceRow]:
    """What `make(place, raw)` makes of each row; of one that it raises SourceError for, `on_broken` hears."""
    for place, raw in rows:
        try:
            made = list(make(place, raw))
        except RowError as error:
            if spec.on_broken is None:
                raise
            spec.on_broken(place, str(error))
        else:
            yield from made


def asked(question: str, answer: str = "", images: int = 1) -> tuple[Turn, ...]:
    """A question about images and, if there is one, its answer."""
    turns: tuple[Turn, ...] = (("human", f"{IMAGE}\n" * images + question),)
    return (*turns, ("gpt", answer)) if answer.strip() else turns


def text_of(row: Any, name: str, place: str) -> str:
    """A text field of a source's row; SourceError names the place and what the row has instead."""
    if not isinstance(row, Mapping) or not isinstance(row.get(name), str):
        has = sorted(row) if isinstance(row, Mapping) else repr(row)
        raise SourceError(f"{place}: no text {name!r} in this row; it has {has}")
    return row[name]


def one_of(files: Sequence[Path], what: str) -> Path:
    """The first file that exists; SourceError names all of them."""
    for file in files:
        if file.exists():
            return file
    raise SourceError(f"{what}: none of {', '.join(map(str, files))} is there")
