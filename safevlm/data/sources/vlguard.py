"""VLGuard: `train.json` with `train.zip` (or the folder `train/`), the same for test; all of it also below `data/`.

Gated: log in and agree first.

A safe row has two pairs, a safe and an unsafe question about one harmless image, and no `harmful_*` key at all. Each
pair is a row here: words are (harmful_category, harmful_subcategory), or (`safe`, `safe_instruction` or
`unsafe_instruction`). The test split sits inside SafeVLM's published pool; a mix refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.json_rows import RowError, json_rows
from safevlm.data.sources.images import ImageIndex, find_all
from safevlm.data.sources.row import (
    PublishedCount,
    Rows,
    SourceError,
    SourceRow,
    SourceSpec,
    SourceTally,
    asked,
    one_of,
    spared,
    text_of,
)
from safevlm.data.sources.source import Source

PUBLISHED = {"train": PublishedCount(2_000), "test": PublishedCount(1_000)}
SAFE_QUESTIONS = ("safe_instruction", "unsafe_instruction")


def files(spec: SourceSpec) -> list[Path]:
    return [_table(spec)]


def splits(folder: Path) -> list[str]:
    """Those whose table is there and has VLGuard's rows."""
    tables = ((split, folder / below / f"{split}.json") for split in PUBLISHED for below in ("", "data"))
    return list(dict.fromkeys(split for split, table in tables if table.is_file() and _is_table(table)))


def _is_table(path: Path) -> bool:
    try:
        first = next(json_rows(path), ("", None))[1]
    except RowError:
        return False
    return isinstance(first, dict) and "instr-resp" in first


def read(spec: SourceSpec) -> Rows:
    if spec.split not in PUBLISHED:
        raise SourceError(f"{spec.name}: VLGuard has no split {spec.split!r}; one of {list(PUBLISHED)}")
    index = ImageIndex(_images(spec))
    tally = SourceTally(spec, PUBLISHED)

    def rows(place: str, raw: Any) -> Iterator[SourceRow]:
        tally.add(spec.split)
        images, missing = find_all(index, [text_of(raw, "image", place)], place)
        for words, part, question, answer in _pairs(raw, place):
            yield SourceRow(
                id=f"{raw.get('id')}{part}",
                place=place,
                turns=asked(question, answer),
                images=images,
                missing=missing,
                words=words,
                split=spec.split,
            )

    yield from spared(spec, json_rows(_table(spec)), rows)
    return tally.close()


def _table(spec: SourceSpec) -> Path:
    return one_of([spec.path / f"{spec.split}.json", spec.path / "data" / f"{spec.split}.json"], spec.name)


def _images(spec: SourceSpec) -> list[Path]:
    """Where the images are; nowhere, where rows without their image are left out."""
    if spec.images:
        return [spec.path / spec.images]
    folders = dict.fromkeys((spec.path, _table(spec).parent))
    places = [folder / name for folder in folders for name in (spec.split, f"{spec.split}.zip")]
    if spec.missing_images == "allow" and not any(place.exists() for place in places):
        return []
    return [one_of(places, f"{spec.name}: images")]


def _pairs(raw: Any, place: str) -> Iterator[tuple[tuple[str, str], str, str, str]]:
    """(words, suffix of the id, question, answer) of each question of a row."""
    if not isinstance(raw.get("safe"), bool) or not isinstance(raw.get("instr-resp"), list) or not raw["instr-resp"]:
        raise SourceError(f"{place}: not VLGuard's layout; a row needs `safe` (true or false) and a list `instr-resp`")
    for pair in raw["instr-resp"]:
        if not raw["safe"]:
            words = (text_of(raw, "harmful_category", place), text_of(raw, "harmful_subcategory", place))
            yield words, "", text_of(pair, "instruction", place), text_of(pair, "response", place)
            continue
        kind = next((name for name in SAFE_QUESTIONS if name in pair), SAFE_QUESTIONS[0])
        yield ("safe", kind), f"-{kind}", text_of(pair, kind, place), text_of(pair, "response", place)


SOURCE = Source(
    "vlguard",
    "VLGuard's train or test split",
    read,
    files,
    licence="gated, research only",
    published=PUBLISHED,
    splits=splits,
    caution="its test split sits inside the published training pool of SafeVLM",
)
