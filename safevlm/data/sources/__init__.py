"""Where training data come from: one reader per published layout, all giving the same rows.

A source of one's own is a module with `LICENCE`, `files(spec)` and `read(spec)`, and a line in this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safevlm.data.sources import coco, image_folder, llava, psa, rtvlm, spa_vl, vlguard
from safevlm.data.sources.row import Rows, SourceError, SourceSpec


@dataclass(frozen=True)
class Source:
    read: Callable[[SourceSpec], Rows]
    files: Callable[[SourceSpec], list[Path]]
    """Annotation files, for digests; images are not among them."""
    licence: str


SOURCES: dict[str, Source] = {
    "llava": Source(llava.read, llava.files, llava.LICENCE),
    "psa": Source(psa.read, psa.files, psa.LICENCE),
    "vlguard": Source(vlguard.read, vlguard.files, vlguard.LICENCE),
    "spa_vl": Source(spa_vl.read, spa_vl.files, spa_vl.LICENCE),
    "rtvlm": Source(rtvlm.read, rtvlm.files, rtvlm.LICENCE),
    "image_folder": Source(image_folder.read, image_folder.files, image_folder.LICENCE),
    "coco": Source(coco.read, coco.files, coco.LICENCE),
}


def source_of(kind: str, where: str) -> Source:
    """The source of a kind; SourceError names the kinds there are."""
    if kind not in SOURCES:
        raise SourceError(f"{where}: unknown kind {kind!r}; one of {list(SOURCES)}")
    return SOURCES[kind]


def read_source(spec: SourceSpec) -> Rows:
    """All rows of one split of a source, always in the same order."""
    if not spec.path.exists():
        raise SourceError(f"{spec.name}: {spec.path} is not there; download it, or set `missing: allow`")
    return (yield from source_of(spec.kind, spec.name).read(spec))
