"""Weights of a folder, one tensor at a time: sharded or not, safetensors or `.bin`; and the writing of shards.

Nothing is held but the open file, so that folding a 13B takes the memory of a shard, not of a model. `.bin` files are
foreign pickles: only tensors are read from them, never code (`weights_only`).
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SINGLES = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILES = (SINGLES[0], INDEXES[0], SINGLES[1], INDEXES[1])
"""In the order in which transformers looks for them."""
SHARD_BYTES = 5 * 10**9
BROKEN = (OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError, pickle.UnpicklingError)


class Stored(Protocol):
    """Where tensors can be read by name, one at a time."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in the type it is stored in."""
        ...


class Weights:
    """Names and tensors of some files; the file read last stays open."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.places: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Any]] | None = None
        for file in files:
            for name in self._file(file):
                if name in self.places:
                    raise ValueError(f"{file}: weight {name!r} is in {self.places[name].name} already")
                self.places[name] = file

    @property
    def names(self) -> list[str]:
        """In the order in which they lie on disk."""
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        entry = self._file(self.places[name])[name]
        return tuple(entry.shape if isinstance(entry, Tensor) else entry.get_shape())

    def read(self, name: str) -> Tensor:
        entry = self._file(self.places[name])[name]
        return entry if isinstance(entry, Tensor) else entry[:] if entry.get_shape() else entry[...]

    def _file(self, file: Path) -> Mapping[str, Any]:
        if self._open is None or self._open[0] != file:
            self._open = None  # the old one goes before the next one comes
            self._open = (file, _open(file))
        return self._open[1]


def find(folder: Path) -> Path | None:
    """The file that holds, or lists, the weights of a model folder; None: there are none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def of_folder(folder: Path) -> Weights:
    """Weights of a model folder. ValueError: none, a shard is missing, or the index and its shards differ."""
    found = find(folder)
    if found is None:
        raise ValueError(f"{folder}: no weights here; one of {', '.join(FILES)} is needed")
    if found.name in SINGLES:
        return Weights([found])
    listed = _index(found)
    read = Weights(shards(found))
    differing = {name for name in {*listed, *read.places} if listed.get(name) != _name(read.places.get(name))}
    if differing:
        shown = ", ".join(sorted(differing)[:3])
        raise ValueError(f"{found}: {len(differing)} weights are not where the index says ({shown}); fetch it again")
    return read


def shards(index: Path) -> list[Path]:
    """The files that an index lists. ValueError: no index, a shard that is missing or lies outside of its folder."""
    files = [index.parent / name for name in dict.fromkeys(_index(index).values())]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        shown = ", ".join(absent[:3])
        raise ValueError(
            f"{index.parent}: {len(absent)} of {len(files)} weight files are missing ({shown}), though {index.name} "
            "lists them; fetch the folder again"
        )
    return files


class Writer:
    """Writes tensors as safetensors shards with an index: `add` each, then `close`."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.full: list[list[str]] = []
        self.total = 0
        self._shard: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Keeps the tensor for the current shard, which is written first when it would grow too large."""
        size = sum(held.nbytes for held in self._shard.values())
        if self._shard and size + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self.total += tensor.nbytes

    def close(self) -> None:
        """Writes what is left, gives the shards their names and, when there are several, writes the index."""
        self._flush()
        if len(self.full) == 1:
            (self.folder / "shard-1").rename(self.folder / SINGLES[0])
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self.full, 1):
            shard = f"model-{number:05d}-of-{len(self.full):05d}.safetensors"
            (self.folder / f"shard-{number}").rename(self.folder / shard)
            places.update(dict.fromkeys(names, shard))
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
        (self.folder / INDEXES[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self._shard:
            self.full.append(list(self._shard))
            save_file(self._shard, self.folder / f"shard-{len(self.full)}", metadata={"format": "pt"})
            self._shard = {}


def read_table(file: Path) -> dict[str, Any]:
    """A JSON object from a file. ValueError names the file, and the line where it is malformed."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: missing") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: malformed JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    except _NotANumberError as error:
        raise ValueError(f"{file}: {error} is no number; correct it, or fetch the file again") from error
    except RecursionError as error:
        raise ValueError(f"{file}: nested too deeply; fetch it again") from error
    if not isinstance(table, dict):
        raise ValueError(f"{file}: must hold a JSON object, not a {type(table).__name__}")
    return table


class _NotANumberError(ValueError):
    """NaN or Infinity, which Python's JSON reads and no field of ours means."""


def _no_number(text: str) -> Any:
    raise _NotANumberError(text)


def _index(file: Path) -> dict[str, str]:
    listed = read_table(file).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
        raise ValueError(f"{file}: its weight_map is no table of weights and their files; fetch it again")
    outside = next((shard for shard in listed.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise ValueError(f"{file}: weight_map names {outside!r}; a shard lies beside its index, and nowhere else")
    return listed


def _open(file: Path) -> Mapping[str, Any]:
    """Name → tensor, or a slice that reads one."""
    try:
        if file.suffix == ".safetensors":
            handle = safe_open(file, "pt")
            return {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  a handle is no dict
        table = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except BROKEN as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file}: cannot be loaded: broken, or not a file of weights alone: {reason}") from error
    if not isinstance(table, Mapping) or not all(isinstance(entry, Tensor) for entry in table.values()):
        raise ValueError(f"{file}: must hold tensors by name and nothing else")
    return table


def _name(file: Path | None) -> str | None:
    return file.name if file else None
