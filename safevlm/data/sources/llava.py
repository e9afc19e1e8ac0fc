"""LLaVA's instruction data: a JSON list (or JSONL) of `{id, image, conversations}`; rows without `image` are text.

Also reads records of ours, labels and all, so a hand-made JSONL or another mix is a source too. `path` is the file;
`images` the folder that image paths start from (default: the file's folder).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safevlm.data.json_rows import json_rows
from safevlm.data.records import ROLES
from safevlm.data.sources.row import ImageFile, Rows, SourceError, SourceRow, SourceSpec, SourceTally, Turn
from safevlm.data.sources.source import Source

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def files(spec: SourceSpec) -> list[Path]:
    return [spec.path]


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, {})
    folder = spec.path.parent / spec.images
    for place, raw in json_rows(spec.path):
        if not isinstance(raw, dict) or not isinstance(raw.get("conversations"), list):
            raise SourceError(f"{place}: not LLaVA's layout; a row needs a list `conversations`")
        tally.add(spec.split)
        yield conversation_row(spec, place, raw, image_names(raw, place), folder)
    return tally.close()


def conversation_row(
    spec: SourceSpec, place: str, raw: dict[str, Any], names: Sequence[str], folder: Path
) -> SourceRow:
    """A row with LLaVA's `conversations`; `names` are its image paths."""
    found = [folder / name for name in names]
    return SourceRow(
        id=str(raw.get("id", place.rpartition("/")[2])),
        place=place,
        turns=tuple(_turn(turn, place) for turn in raw["conversations"]),
        images=tuple(ImageFile(path) for path in found if path.is_file()),
        missing=tuple(str(path) for path in found if not path.is_file()),
        safe_type=_name(raw.get("safe_type")),
        safe_level=_name(raw.get("safe_level")),
        split=str(raw.get("split", spec.split)),
    )


def image_names(raw: dict[str, Any], place: str) -> list[str]:
    image = raw.get("image")
    names = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SourceError(f"{place}: `image` must be a path or a list of paths, not {image!r}")
    return names


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
        raise SourceError(f"{place}: a turn needs `from` (one of {sorted(ROLES)}) and a text `value`, not {turn!r}")
    return SPEAKERS[ROLES[turn["from"]]], turn["value"]


def _name(label: Any) -> str | None:
    return None if label is None else str(label)


SOURCE = Source(
    "llava",
    "LLaVA's instruction data, and records of ours",
    read,
    files,
    licence="CC BY 4.0 for LLaVA's text; the images have their own",
)
