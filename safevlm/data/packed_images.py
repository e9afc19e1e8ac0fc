"""Images that records hold as bytes, kept as files: beside the record file, in `FILE.images/`, named by their content.

Training opens an image many times, and a table of a million rows is no place to do that from. The same bytes are the
same file; several processes may write it at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safevlm.data.atomic_write import atomic_file
from safevlm.data.images import decode_image, image_format

ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
OTHER = ".img"


def folder_of(file: Path) -> Path:
    """Where the images of a record file go."""
    return file.with_name(f"{file.name}.images")


def store(data: bytes, name: str, folder: Path) -> Path:
    """The bytes of an image as a file of `folder`. ImageError, with `name`: no image; OSError: cannot be written."""
    stem = hashlib.sha256(data).hexdigest()[:24]
    places = [folder / f"{stem}{ending}" for ending in (*ENDINGS.values(), OTHER)]
    known = next((path for path in places if _holds(path, data)), None)
    if known is not None:
        return known
    decode_image(data, name)
    path = folder / f"{stem}{ENDINGS.get(image_format(data), OTHER)}"
    with atomic_file(path) as partial:
        partial.write_bytes(data)
    return path


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data)
