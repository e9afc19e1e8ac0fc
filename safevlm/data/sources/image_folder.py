"""Pictures only: a folder of folders, each named after a category. `FOLDER/<category>/[<sub-category>/…]<picture>`.

Pictures that lie in the folder itself have no words; label them by the source's name alone (`NAME: …`).
"""

from __future__ import annotations

from pathlib import Path

from safevlm.data.sources.pictures import picture_files
from safevlm.data.sources.row import Picture, Rows, SourceError, SourceRow, SourceSpec, Tally

LICENCE = "the user's own"


def files(spec: SourceSpec) -> list[Path]:
    return []


def read(spec: SourceSpec) -> Rows:
    tally = Tally(spec, {})
    folder = spec.path / spec.images
    found = picture_files(folder)
    if not found:
        raise SourceError(f"{spec.name}: no pictures below {folder}")
    for path in found:
        name = path.relative_to(folder)
        tally.add(spec.split)
        yield SourceRow(
            id=name.as_posix(), place=str(path), pictures=(Picture(path),), words=name.parts[:-1], split=spec.split
        )
    return tally.close()
