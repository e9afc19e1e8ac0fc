"""Files of what the vision tower made of images, each image by its own digest.

    FOLDER/features-KEY-NAME.safetensors    patches (n, p, v), digests (n, 32), checks (n,): CRC-32 of each row

KEY says what made them (`safevlm.training.feature_cache`). Files are written whole or not at all; what is damaged is
told, and read as if it were not there. Rows are read, not mapped: a mapped file that somebody cuts, or that goes away
on a network disk, ends the process without a word.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safevlm.data.atomic_write import atomic_file

log = logging.getLogger(__name__)

PREFIX, SUFFIX = "features-", ".safetensors"
DAMAGES = (SafetensorError, OSError, ValueError, IndexError)
DIGEST = 32
HEADER_LENGTH = 8
"""Bytes in front of a header that say how long it is."""
EXTRA = 640
"""Bytes of an image in a file beside its patches, at most: its digest and check, and the file's header."""


def write(folder: Path, key: str, digests: Sequence[bytes], patches: Tensor) -> None:
    """A new file. `digests` of the images, 32 bytes each; `patches` (n, p, v). OSError: the disk does not take it."""
    tensors = {
        "patches": patches,
        "digests": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8),
        "checks": torch.tensor([_check(row) for row in patches]),
    }
    with atomic_file(folder / f"{PREFIX}{key}-{uuid.uuid4().hex[:12]}{SUFFIX}") as partial:
        save_file(tensors, partial)


def files_in(folder: Path, key: str = "") -> list[Path]:
    """All files in a folder, or those of a key; the one that was used longest ago first."""
    found = []
    for file in folder.glob(f"{PREFIX}{key}{'-' if key else ''}*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another run made room
            found.append((file.stat().st_mtime_ns, file))
    return [file for _, file in sorted(found)]


def unfinished_in(folder: Path) -> list[Path]:
    """What killed processes left of files that they wrote."""
    return list(folder.glob(f".{PREFIX}*"))


def digests_of(file: Path) -> list[bytes] | None:
    """Of the images in a file, in order; None, and a warning: it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            digests, checks = stored.get_tensor("digests"), stored.get_tensor("checks")
            images = stored.get_slice("patches").get_shape()[0]
        if digests.shape != (images, DIGEST) or checks.shape != (images,):
            raise ValueError("its columns do not belong together")
    except DAMAGES as error:
        tell_damaged(file, error)
        return None
    return [bytes(row) for row in digests.tolist()]


def image_bytes(file: Path) -> int:
    """What an image takes in such a file."""
    with safe_open(file, framework="pt") as stored:
        first = stored.get_slice("patches")[:1]
    return first.nbytes + EXTRA


def tell_damaged(file: Path, why: object) -> None:
    log.warning("%s: damaged (%s); its images go through the vision tower again", file, " ".join(str(why).split()))


class FeatureRows:
    """The patches of one file, row by row. OSError, SafetensorError, ValueError: it cannot be read, or is damaged."""

    def __init__(self, file: Path) -> None:
        with safe_open(file, framework="pt") as stored:
            first = stored.get_slice("patches")[:1]
            self._checks: list[int] = stored.get_tensor("checks").tolist()
        self._type, self._shape, self._bytes = first.dtype, first.shape[1:], first.nbytes
        self._file = file.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(HEADER_LENGTH), "little")
        header = json.loads(self._file.read(length))
        self._start = HEADER_LENGTH + length + header["patches"]["data_offsets"][0]

    def __getitem__(self, row: int) -> Tensor:
        """(p, v)."""
        place = self._start + row * self._bytes
        data = bytearray(os.pread(self._file.fileno(), self._bytes, place))  # no position that forks would share
        if zlib.crc32(data) != self._checks[row]:
            raise ValueError("other bytes than were written")
        return torch.frombuffer(data, dtype=self._type).reshape(self._shape)


@dataclass
class FeatureCache:
    """Image file → (p, v). Processes may share one; each opens the files for itself."""

    files: Sequence[Path]
    rows: Mapping[str, tuple[int, int]]
    """Path of an image → index of its file, and its row there."""
    _opened: dict[int, FeatureRows] = field(default_factory=dict)
    _damaged: set[int] = field(default_factory=set)

    def __call__(self, path: Path) -> Tensor | None:
        """None: not kept, or damaged, which a warning tells once for each file."""
        file, row = self.rows.get(str(path), (-1, -1))
        if file < 0:
            return None
        try:
            if file not in self._opened:
                self._opened[file] = FeatureRows(self.files[file])
            return self._opened[file][row]
        except DAMAGES as error:
            if file not in self._damaged:
                self._damaged.add(file)
                tell_damaged(self.files[file], error)
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def _check(patches: Tensor) -> int:
    return zlib.crc32(patches.contiguous().view(torch.uint8).numpy().data)
