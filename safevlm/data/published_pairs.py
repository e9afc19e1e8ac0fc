"""The published data of security tensors (arXiv 2507.20994), which have their parts already.

Rows: `pic_path`, `input`, `type`, `output_refuse` (what SA is to be answered), `output` (some model's own answer). The
trap: in the released code the type is compared with "Harmful", which no row says, so its SA learns the compliant
`output`. Here a type that is none of the three is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.json_rows import json_rows
from safevlm.data.pairs import Pair
from safevlm.data.records import LabelError, MissingImageError, RecordError

PARTS = {"SA set": "malicious", "TCB set": "contrastive", "GB set": "benign"}
SIGN = "pic_path"
"""The field that tells such a file from training records."""


def is_published(file: Path) -> bool:
    """Whether the first row has this layout."""
    return any(isinstance(row, dict) and SIGN in row for _, row in [next(json_rows(file), ("", None))])


def read(file: Path, images: Path) -> Iterator[Pair]:
    """The rows of a file in order; the answers of TCB and GB are those of the model that the file was made with.

    RecordError: an unknown type, a field that is missing or empty, an image that is not there.
    """
    for index, (place, row) in enumerate(json_rows(file)):
        if not isinstance(row, dict):
            raise RecordError(f"{place}: not a row of {SIGN}, input, type, output, output_refuse")
        part = PARTS.get(_text(row, "type", place))
        if part is None:
            raise LabelError(f"{place}: unknown type {row['type']!r}; one of {list(PARTS)}")
        image = images / _text(row, SIGN, place)
        if not image.is_file():
            raise MissingImageError(f"{place}: no such image file {image}; say where images are with --images DIR")
        answer = _text(row, "output_refuse" if part == "malicious" else "output", place)
        yield Pair(f"{part}/{index}", part, _text(row, "input", place), (image,), answer)


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{place}: `{field}` must be a text, not {value!r}")
    return value.strip()
