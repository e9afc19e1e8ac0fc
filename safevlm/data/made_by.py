"""What made a result file: command, commit, versions, digests of what it was made of. The one place for all of them.

Paths alone vouch for nothing, since a model trained again lies where the old one lay.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import write_text
from safevlm.versions import PACKAGE, commit, installed

KEY = "made_by"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "pillow")
WEIGHTS = ("*.safetensors", "config.json", "adapter_config.json")
DEFENSES = "defenses"
"""Folder of a checkpoint for files of defenses; one that comes there is no other model."""
BLOCK = 1 << 20  # bytes read at once

Places = Path | str | Sequence[Path | str]


def made_by(inputs: Mapping[str, Places], packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The record. `inputs`: files or folders by what they are (`model`, `data`, `rules`)."""
    return {
        "command": command_line(),
        "commit": commit(),
        "versions": versions(packages),
        "digests": {name: digest(places) for name, places in inputs.items()},
    }


def write_result(path: Path, table: Mapping[str, Any], inputs: Mapping[str, Places], unbounded: bool = False) -> None:
    """The table and what made it, as a whole or not at all. `unbounded`: numbers may be infinite.

    ValueError: a value is no number, or an infinite one where none may be.
    """
    whole = {**table, KEY: made_by(inputs)}
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=unbounded) + "\n")


def command_line() -> str:
    """This process's command as one would type it, without where Python and we are installed."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        package = ".".join(program.parts[program.parts.index(PACKAGE) :][:-1]) if PACKAGE in program.parts else ""
        said = [PACKAGE] if package == PACKAGE else ["python", "-m", package or program.parent.name]
    else:
        said = [program.name]
    return shlex.join([*said, *sys.argv[1:]])


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages, without importing them."""
    return {"python": platform.python_version()} | {name: installed(name) or "missing" for name in packages}


def digest(places: Places) -> str:
    """16 hexadecimal digits of files; of a checkpoint's weights; of the tables of a folder of data.

    Empty where there is nothing to read, as for a model that is served elsewhere.
    """
    every = [places] if isinstance(places, Path | str) else places
    return digest_of_files([file for place in every if str(place) for file in _files(Path(place))])


def weight_files(model: Path) -> list[Path]:
    """What makes a checkpoint this one: weights and configs, without those of its defenses."""
    return [file for file in below(model, WEIGHTS) if DEFENSES not in file.relative_to(model).parts]


def below(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.rglob(pattern))]


def digest_of_files(files: Iterable[Path]) -> str:
    return digest_of_blocks(block for file in files for block in _blocks(file))


def digest_of_blocks(blocks: Iterable[bytes]) -> str:
    """Empty where no block is."""
    made, empty = hashlib.sha256(), True
    for block in blocks:
        made.update(block)
        empty = False
    return "" if empty else made.hexdigest()[:16]


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return weight_files(place) or sorted(file for file in place.glob("*.json*") if file.is_file())


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            yield block
