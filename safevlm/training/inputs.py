"""What a run reads, told by content: a path alone does not tell data from those that were put in their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_patch.weights import read_table
from safevlm.config import Recipe
from safevlm.data.sources.fingerprints import bytes_digest, file_digest
from safevlm.model import checkpoint_folder
from safevlm.training.arguments import deepspeed_file

WEIGHTS = ("*.safetensors", "*.bin")
CONFIGS = ("config.json", "adapter_config.json")
NOT_LEARNED_FROM = ("policy", "base_checkpoint", "transformers_version")
"""Keys of a config that may change while the model stays: a calibration, a base that has moved."""
BLOCK = 1 << 16
WHOLE = 64 * BLOCK
"""Bytes; a larger file of weights is told by blocks spread over it, since training changes all of it."""


@dataclass(frozen=True)
class RunInput:
    """A file or folder that a key of the recipe names."""

    path: str
    digest: str
    """sha256; empty: nothing is there, and whoever reads it says so better."""


def _file(path: str) -> str:
    return file_digest(Path(path)) if Path(path).is_file() else ""


def _deepspeed(given: str) -> str:
    return file_digest(file) if (file := deepspeed_file(given)) else ""


def _checkpoint(path: str) -> str:
    """Of the weights and configs of a checkpoint's folder; where it lies does not count, nor does its card."""
    try:
        folder = checkpoint_folder.resolve(path)
    except checkpoint_folder.CheckpointError:
        return ""
    places = (folder, folder / "safety")
    weights = sorted(file for place in places for pattern in WEIGHTS for file in place.glob(pattern))
    configs = [place / name for place in places for name in CONFIGS if (place / name).is_file()]
    told = [f"{file.relative_to(folder)} {_weights(file)}" for file in weights]
    told += [f"{file.relative_to(folder)} {_config(file)}" for file in configs]
    return bytes_digest("\n".join(told).encode())


def _config(file: Path) -> str:
    try:
        table = read_table(file)
    except ValueError:
        return ""  # whoever loads it says better what is wrong
    return bytes_digest(
        json.dumps({key: table[key] for key in sorted(table) if key not in NOT_LEARNED_FROM}, sort_keys=True).encode()
    )


def _weights(file: Path) -> str:
    size = file.stat().st_size
    if size <= WHOLE:
        return file_digest(file)
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for step in range(WHOLE // BLOCK):
            opened.seek(step * (size - BLOCK) // (WHOLE // BLOCK - 1))
            digest.update(opened.read(BLOCK))
    return digest.hexdigest()


_READS: dict[str, tuple[Callable[[Recipe], Sequence[str | None]], Callable[[str], str]]] = {
    "model.path": (lambda recipe: [recipe.model.path], _checkpoint),
    "model.taxonomy": (lambda recipe: [recipe.model.taxonomy], _file),
    "data.train": (lambda recipe: recipe.data.train, _file),
    "data.exclude": (lambda recipe: recipe.data.exclude, _file),
    "data.relabel": (lambda recipe: [recipe.data.relabel], _file),
    "run.deepspeed": (lambda recipe: [recipe.run.deepspeed], _deepspeed),
}
KEYS = tuple(_READS)
"""Keys of a recipe that name something to read."""

Inputs = dict[str, list[RunInput]]


def read(recipe: Recipe) -> Inputs:
    """What every key of `KEYS` names, in the recipe's order."""
    return {
        key: [RunInput(path, digest(path)) for path in paths(recipe) if path] for key, (paths, digest) in _READS.items()
    }


def as_record(found: Inputs) -> dict[str, Any]:
    """For `run.json`."""
    return {key: [asdict(one) for one in some] for key, some in found.items()}


def from_record(record: Any) -> Inputs:
    """The same read again; a key that the record lacks is not there. KeyError, TypeError: not such a record."""
    return {key: [RunInput(**one) for one in some] for key, some in dict(record).items() if key in KEYS}


def unknown(record: Inputs) -> Iterator[str]:
    """Keys that a record of an earlier version does not tell of."""
    yield from (key for key in KEYS if key not in record)
