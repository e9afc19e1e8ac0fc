"""Where training data come from: one reader per published layout, all giving the same rows.

A source that joins the project is a file with its `Source`, named in this table. A user's own is named in the mix,
`kind: package.module:SOURCE`, or comes by an entry point of the group `safevlm.sources`.
"""

from __future__ import annotations

import dataclasses

from safevlm.data.sources import coco, image_folder, llava, psa, rtvlm, spa_vl, vlguard
from safevlm.data.sources.row import Rows, SourceError, SourceSpec
from safevlm.data.sources.source import Source
from safevlm.plugins import Registry

__all__ = ["SOURCES", "Source", "read_source", "source_of"]

OURS = (
    llava.SOURCE,
    psa.SOURCE,
    vlguard.SOURCE,
    spa_vl.SOURCE,
    rtvlm.SOURCE,
    image_folder.SOURCE,
    coco.SOURCE,
)


def _adopt(name: str, found: object) -> Source:
    if not isinstance(found, Source):
        raise ValueError(f"an object of {type(found).__name__} is no source; name a safevlm.data.sources.Source")
    return dataclasses.replace(found, name=name)


SOURCES: Registry[Source] = Registry("sources", {source.name: source for source in OURS}, _adopt)


def source_of(kind: str, where: str) -> Source:
    """The source of a kind. SourceError: no such kind (it names the choices), or a broken one of a user's own."""
    try:
        return SOURCES.find(kind, f"{where}: kind")
    except ValueError as error:
        raise SourceError(str(error)) from error


def read_source(spec: SourceSpec) -> Rows:
    """All rows of one split of a source, always in the same order."""
    if not spec.path.exists():
        raise SourceError(f"{spec.name}: {spec.path} is not there; download it, or set `missing: allow`")
    return (yield from source_of(spec.kind, spec.name).read(spec))
