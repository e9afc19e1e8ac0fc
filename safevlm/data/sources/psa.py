"""PSA-VLM's JSONL: LLaVA's conversations with USER/ASSISTANT, `safe_type` 0-6 and `safe_level` 0-3.

`image` is the path itself; `a<split>b` are two images, which the release pastes side by side. Ours stay two, and the
question gets an image slot for each. Labels become words of the published names, so that a taxonomy of one's own can
translate them in the mix's `labels` (`NAME/politics/careful: …`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from safevlm.data.conversations import ImageRef
from safevlm.data.json_rows import json_rows
from safevlm.data.sources import llava
from safevlm.data.sources.row import IMAGE, Rows, SourceError, SourceRow, SourceSpec, SourceTally, Turn
from safevlm.data.sources.source import Source
from safevlm.taxonomy import DEFAULT

BESIDE = "<split>"


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, {})
    for place, raw in json_rows(spec.path):
        if not isinstance(raw, dict) or not isinstance(raw.get("conversations"), list):
            raise SourceError(f"{place}: not PSA-VLM's layout; a row needs a list `conversations`")
        told = llava.conversation(raw, place)
        names = [part for image in told.images for part in _beside(image)]
        row = llava.conversation_row(spec, place, raw, dataclasses.replace(told, images=tuple(names)))
        tally.add(spec.split)
        yield _labelled(_with_slots(row, len(names)), raw, place)
    return tally.close()


def _beside(image: ImageRef) -> list[ImageRef]:
    return [image] if isinstance(image, bytes) else list(image.split(BESIDE))


def _with_slots(row: SourceRow, images: int) -> SourceRow:
    """One slot stands for both images of a pasted pair."""
    slots = sum(text.count(IMAGE) for _, text in row.turns)
    if slots != 1 or images < 2:
        return row
    turns: list[Turn] = [(speaker, text.replace(IMAGE, IMAGE * images)) for speaker, text in row.turns]
    return row._replace(turns=tuple(turns))


def _labelled(row: SourceRow, raw: dict[str, Any], place: str) -> SourceRow:
    try:
        kind = _published(raw.get("safe_type"), DEFAULT.category_names, DEFAULT.category_id)
        level = _published(raw.get("safe_level"), DEFAULT.level_names, DEFAULT.level_id)
    except ValueError as error:
        raise SourceError(f"{place}: {error}") from error
    words = tuple(word for word in (kind, level) if word is not None)
    return row._replace(words=words, safe_type=kind, safe_level=level)


def _published(label: Any, names: list[str], id_of: Any) -> str | None:
    return None if label is None else names[id_of(label)]


SOURCE = Source(
    "psa",
    "PSA-VLM's JSONL",
    read,
    llava.files,
    licence="unknown: the release has no licence file",
    keeps_labels=True,
)
