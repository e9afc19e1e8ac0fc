"""Images only: a folder of folders, each named after a category. `FOLDER/<category>/[<sub-category>/…]<image>`.

Images that lie in the folder itself have no words; label them by the source's name alone (`NAME: …`).
"""

from __future__ import annotations

from pathlib import Path

from safevlm.data.sources.images import image_files
from safevlm.data.sources.row import ImageFile, Rows, SourceError, SourceRow, SourceSpec, SourceTally
from safevlm.data.sources.source import Source


def files(spec: SourceSpec) -> list[Path]:
    return []


def read(spec: SourceSpec) -> Rows:
    tally = SourceTally(spec, {})
    folder = spec.path / spec.images
    found = image_files(folder)
    if not found:
        raise SourceError(f"{spec.name}: no images below {folder}")
    for path in found:
        name = path.relative_to(folder)
        tally.add(spec.split)
        yield SourceRow(
            id=name.as_posix(), place=str(path), images=(ImageFile(path),), words=name.parts[:-1], split=spec.split
        )
    return tally.close()


SOURCE = Source(
    "image_folder",
    "a folder of images, a sub-folder per class",
    read,
    files,
    licence="the user's own",
)
