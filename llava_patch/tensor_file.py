"""safetensors files whose bytes hang on their content alone: the library writes metadata in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

LENGTH = 8
"""Bytes that say how long the header is."""


def save_tensors(tensors: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str]) -> None:
    """As `safetensors.torch.save_file`, with metadata in the order of its keys: the same content has one digest."""
    save_file(dict(tensors), file, metadata=dict(metadata))
    with Path(file).open("r+b") as stored:
        size = int.from_bytes(stored.read(LENGTH), "little")
        header = json.loads(stored.read(size))
        header["__metadata__"] = dict(sorted(metadata.items()))
        told = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(told) > size:
            raise ValueError(f"{file}: its header has another length than {size} bytes when it is sorted")
        stored.seek(LENGTH)
        stored.write(told.ljust(size))
