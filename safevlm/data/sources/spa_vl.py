"""SPA-VL: parquet with the images inside, or the preference JSON with an image folder. The answer is `chosen`.

    data/train-*.parquet, validation/validation-*.parquet      question, chosen, rejected, image, image_name
    test/harm-*.parquet, test/help-*.parquet                   question, image, class1, class2, class3; no answers
    FILE.json                                                  {id, image: "<Domain>/<Category>/<Sub>/<n>.jpg", …}

The parquet of train names no class; words are taken from the folders of `image_name` where it has any.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safevlm.data.json_rows import json_rows
from safevlm.data.sources.images import ImageIndex, batches, find_all, parquet_file
from safevlm.data.sources.row import (
    ImageFile,
    PublishedCount,
    Rows,
    SourceError,
    SourceRow,
    SourceSpec,
    SourceTally,
    asked,
    spared,
    text_of,
)
from safevlm.data.sources.source import Source

PATTERNS = {
    "train": ("data/train-*.parquet", "train-*.parquet"),
    "validation": ("validation/validation-*.parquet", "data/validation-*.parquet", "validation-*.parquet"),
    "test": ("test/*.parquet", "data/test-*.parquet"),
}
PUBLISHED = {"train": PublishedCount(93_000, is_sure=False), "harm": PublishedCount(265), "help": PublishedCount(265)}
CLASSES = ("class1", "class2", "class3")


def files(spec: SourceSpec) -> list[Path]:
    """Parquet files of the split; or the one JSON that `path` names."""
    if spec.path.is_file():
        return [spec.path]
    if spec.split not in PATTERNS:
        raise SourceError(f"{spec.name}: SPA-VL has no split {spec.split!r}; one of {list(PATTERNS)}")
    found = next(
        (sorted(spec.path.glob(pattern)) for pattern in PATTERNS[spec.split] if any(spec.path.glob(pattern))), []
    )
    if not found:
        raise SourceError(f"{spec.name}: no {' or '.join(PATTERNS[spec.split])} in {spec.path}")
    return found


def splits(folder: Path) -> list[str]:
    """Those whose parquet is there, in SPA-VL's own folders."""
    return [split for split, patterns in PATTERNS.items() if any(_is_table(path) for path in folder.glob(patterns[0]))]


def _is_table(path: Path) -> bool:
    try:
        names = parquet_file(path).schema_arrow.names
    except (SourceError, ImportError):
        return False
    return {"question", "image"} <= set(names)


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, PUBLISHED)
    for file in files(spec):
        reader = _parquet_rows if file.suffix == ".parquet" else _json_rows
        part = file.name.partition("-")[0] if spec.split == "test" else spec.split
        for row in reader(spec, file):
            tally.add(part)
            yield row
    return tally.close()


def _parquet_rows(spec: SourceSpec, file: Path) -> Iterator[SourceRow]:
    table = parquet_file(file)
    names = table.schema_arrow.names
    lacking = sorted({"question", "image"} - set(names))
    if lacking or ("chosen" not in names and spec.split != "test"):
        raise SourceError(f"{file}: not SPA-VL's layout: columns {names}, without {lacking or ['chosen']}")
    columns = [name for name in ("question", "chosen", "image_name", *CLASSES) if name in names]
    found = batches(table, file, range(table.num_row_groups), columns, 1024)
    placed = enumerate(raw for batch in found for raw in batch.to_pylist())

    def row(place: str, raw: Any) -> Iterator[SourceRow]:
        number = place.rpartition(":")[2]
        yield SourceRow(
            id=f"{file.stem}-{number}",
            place=place,
            turns=asked(text_of(raw, "question", place), raw.get("chosen") or ""),
            images=(ImageFile(file, number),),
            words=_words(raw),
            split=spec.split,
        )

    yield from spared(spec, ((f"{file}:{number}", raw) for number, raw in placed), row)


def _words(raw: dict[str, Any]) -> tuple[str, ...]:
    classes = tuple(str(raw[name]) for name in CLASSES if raw.get(name))
    return classes or PurePosixPath(raw.get("image_name") or "").parts[:-1]


def _json_rows(spec: SourceSpec, file: Path) -> Iterator[SourceRow]:
    index = ImageIndex([file.parent / spec.images])
    for place, raw in json_rows(file):
        image = text_of(raw, "image", place)
        images, missing = find_all(index, [image], place)
        yield SourceRow(
            id=str(raw.get("id", place.rpartition("/")[2])),
            place=place,
            turns=asked(text_of(raw, "question", place), text_of(raw, "chosen", place)),
            images=images,
            missing=missing,
            words=PurePosixPath(image).parts[:-1],
            split=spec.split,
        )


SOURCE = Source(
    "spa_vl",
    "SPA-VL's parquet, or its preference JSON with an image folder",
    read,
    files,
    licence="CC BY 4.0",
    published=PUBLISHED,
    splits=splits,
    caution="the parquet of train names no class",
)
