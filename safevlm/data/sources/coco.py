"""COCO as a clean pool: a folder of images (`train2017/`) and, if given, its captions.

`captions` is COCO's own file (`annotations/captions_train2017.json`: `images` with `id` and `file_name`, `annotations`
with `image_id` and `caption`). The first caption of an image is its answer. Without captions the images have no
answer, and `head_only: allow` must say that they train the head alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safevlm.data.sources.images import image_files
from safevlm.data.sources.row import (
    ImageFile,
    PublishedCount,
    Rows,
    SourceError,
    SourceRow,
    SourceSpec,
    SourceTally,
    asked,
)
from safevlm.data.sources.source import Source
from safevlm.files import read_json

PUBLISHED = {"train2017": PublishedCount(118_287)}
LARGEST = 1 << 30
"""Bytes of a table of captions."""
QUESTION = "Describe the image in one sentence."


def files(spec: SourceSpec) -> list[Path]:
    return [spec.path / spec.captions] if spec.captions else []


def read(spec: SourceSpec) -> Rows:
    folder = spec.path / (spec.images or "train2017")
    captions = _captions(spec.path / spec.captions) if spec.captions else {}
    tally = SourceTally(spec, PUBLISHED)
    if not folder.is_dir():
        raise SourceError(f"{spec.name}: no folder {folder}; say where the images are with `images`")
    for path in image_files(folder):
        tally.add(folder.name)
        caption = captions.get(path.name, "")
        turns = asked(spec.question[0] if spec.question else QUESTION, caption) if caption else ()
        yield SourceRow(id=path.stem, place=str(path), turns=turns, images=(ImageFile(path),), split=spec.split)
    return tally.close()


def _captions(file: Path) -> dict[str, str]:
    """File name → its first caption."""
    try:
        table: dict[str, Any] = read_json(file, limit=LARGEST)
        names = {image["id"]: image["file_name"] for image in table["images"]}
        found: dict[str, str] = {}
        for row in sorted(table["annotations"], key=lambda row: row["id"]):
            found.setdefault(names[row["image_id"]], row["caption"].strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file}: not COCO's captions: {type(error).__name__}: {error}") from error
    return found


SOURCE = Source(
    "coco",
    "COCO's images and, if given, captions",
    read,
    files,
    licence="CC BY 4.0 (annotations); the images have their own",
    published=PUBLISHED,
    caution="without captions the images train the head alone",
)
