"""The published data of security tensors (arXiv 2507.20994), which have their parts already.

Rows: `pic_path`, `input`, `type`, `output_refuse` (what SA is to be answered), `output` (some model's own answer). The
trap: in the released code the type is compared with "Harmful", which no row says, so its SA learns the compliant
`output`. Here a type that is none of the three is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from safevlm.data.images import is_there
from safevlm.data.json_rows import json_rows
from safevlm.data.pairs import Pair
from safevlm.data.records import LabelError, MissingImageError, RecordError
from safevlm.data.sources.images import ImageIndex
from safevlm.data.sources.row import SourceError

PARTS = {"SA set": "malicious", "TCB set": "contrastive", "GB set": "benign"}
SIGN = "pic_path"
"""The field that tells such a file from training records."""


def is_published(file: Path) -> bool:
    """Whether the first row has this layout."""
    return any(isinstance(row, dict) and SIGN in row for _, row in [next(json_rows(file), ("", None))])


def read(file: Path, images: Path) -> Iterator[Pair]:
    """The rows of a file in order; the answers of TCB and GB are those of the model that the file was made with.

    Image paths, which begin `../../Dataset/images/` in the release, are found by their ends below `images`.
    RecordError: an unknown type, a field that is missing or empty, an image that is not there, or one whose name
    several have.
    """
    found = _NamedImages(images)
    for index, (place, row) in enumerate(json_rows(file)):
        if not isinstance(row, dict):
            raise RecordError(f"{place}: not a row of {SIGN}, input, type, output, output_refuse")
        part = PARTS.get(_text(row, "type", place))
        if part is None:
            raise LabelError(f"{place}: unknown type {row['type']!r}; one of {list(PARTS)}")
        image = found.find(_text(row, SIGN, place), place)
        answer = _text(row, "output_refuse" if part == "malicious" else "output", place)
        yield Pair(f"{part}/{index}", part, _text(row, "input", place), (image,), answer)


class _NamedImages:
    """Images below a folder, by the paths that the release has: they start from a folder of its authors'."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str, place: str) -> Path:
        """The image with the longest end of the path in common. MissingImageError: none; RecordError: several."""
        plain = PurePosixPath(name.replace("\\", "/"))
        parts = [part for part in plain.parts if part not in (".", "..", "/")]
        ends = (Path(self._folder, *parts[start:]) for start in range(len(parts)))
        known = next((path for path in (self._folder / name, *ends) if is_there(path)), None)
        if known is not None:
            return known
        try:
            image = self._index.find("/".join(parts), place)
        except SourceError as error:
            raise RecordError(f"{error}; give --images the folder of the right ones") from error
        if image is None:
            raise MissingImageError(
                f"{place}: no such image file {self._folder / name}; say where images are with --images DIR"
            )
        return image.path

    @cached_property
    def _index(self) -> ImageIndex:
        return ImageIndex([self._folder])


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{place}: `{field}` must be a text, not {value!r}")
    return value.strip()
