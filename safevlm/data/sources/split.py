"""A split that we draw ourselves: 80 % of the images train, 20 % test; kept in a file, which from then on is the law.

The unit is the image, by its pixels, not the row: RTVLM asks about one flag in several rows and several subsets, and
a split by rows would show the test's images in training. Rows whose images fall on both sides (pairs) are on
neither: `mixed`. Training and evaluation read the same file; rows that it does not know are an error.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from typing_extensions import TypedDict

from safevlm.data.atomic_write import write_text
from safevlm.data.sources.fingerprints import pixel_fingerprints
from safevlm.data.sources.row import SourceError, SourceRow, SourceSpec
from safevlm.files import checked, read_json

log = logging.getLogger(__name__)

SCHEMA = 1
LARGEST = 512 << 20
"""Bytes of a split file."""
TRAIN_SHARE = 0.8  # PSA-VLM's supplement
SIDES = ("train", "test", "mixed")


def sides(spec: SourceSpec, rows: Sequence[SourceRow]) -> dict[str, str]:
    """Row id → train, test or mixed; from `spec.split_file` if it exists, else drawn and written there."""
    if spec.split_file is None:
        raise SourceError(f"{spec.name}: `split: {spec.split}` needs a `split_file`; `split: all` reads everything")
    if not spec.split_file.is_file():
        _write(spec.split_file, spec, draw(rows, spec.split_seed))
    table = _read(spec.split_file)
    known = {name: side for side in SIDES for name in table["ids"].get(side, [])}
    strangers = [row for row in rows if row.id not in known]
    if strangers:
        raise SourceError(
            f"{strangers[0].place}: row {strangers[0].id!r} and {len(strangers) - 1} others are not in "
            f"{spec.split_file}; other data were split then. Delete that file to draw anew (and train anew)"
        )
    return known


def draw(rows: Sequence[SourceRow], seed: int) -> dict[str, str]:
    """The split itself: a function of the images and the seed."""
    images = {image for row in rows for image in row.images}
    prints = pixel_fingerprints(images, "splitting")
    of_row = {row.id: [prints[image] for image in row.images] for row in rows}
    train = _train_prints(rows, of_row, seed)
    return {name: _side([print_ in train for print_ in found]) for name, found in of_row.items()}


def _train_prints(rows: Iterable[SourceRow], of_row: Mapping[str, list[str]], seed: int) -> set[str]:
    """Drawn subset by subset; an image belongs to the first subset that shows it."""
    by_subset: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in rows:
        fresh = [one for one in of_row[row.id] if one not in seen]
        by_subset.setdefault(row.words[0], []).extend(dict.fromkeys(fresh))
        seen.update(fresh)
    train: set[str] = set()
    for name, prints in by_subset.items():
        rng = random.Random(f"{seed}/{name}")
        train.update(rng.sample(prints, round(TRAIN_SHARE * len(prints))))
    return train


def _side(is_train: Sequence[bool]) -> str:
    """A row without an image (it is missing) trains nothing and tests nothing."""
    if not is_train:
        return "mixed"
    return "train" if all(is_train) else "test" if not any(is_train) else "mixed"


def _write(file: Path, spec: SourceSpec, drawn: Mapping[str, str]) -> None:
    ids = {side: [name for name, its in drawn.items() if its == side] for side in SIDES}
    table = {
        "schema": SCHEMA,
        "source": spec.kind,
        "seed": spec.split_seed,
        "train_share": TRAIN_SHARE,
        "unit": "image",
        "counts": {side: len(ids[side]) for side in SIDES},
        "ids": ids,
    }
    write_text(file, json.dumps(table, indent=1) + "\n")
    log.info("%s: split drawn with seed %d: %s (%s)", spec.name, spec.split_seed, table["counts"], file.name)


def _read(file: Path) -> dict[str, Any]:
    try:
        table = checked(SplitFile, read_json(file, limit=LARGEST), str(file), more=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"{error}; not a split file of ours") from error
    return cast("dict[str, Any]", table)


class SplitFile(TypedDict):
    """What is read of the file."""

    schema: Literal[1]
    ids: dict[str, list[str]]
