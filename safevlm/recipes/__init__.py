"""The shipped recipes, mixes and DeepSpeed settings, found by name: `safevlm train llava7b_stage1`.

A name is a file's name without its ending; a path to a file of one's own works everywhere that a name does, and wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

Kind = Literal["recipe", "mix", "deepspeed"]

FOLDER = Path(str(files(__name__)))
TAXONOMY = "taxonomy_"
MIX = "mix_"


def shipped(kind: Kind) -> dict[str, Path]:
    """Files by name, in alphabetical order."""
    if kind == "deepspeed":
        return _by_name(sorted((FOLDER / "deepspeed").glob("*.json")))
    found = _by_name(sorted(FOLDER.glob("*.yaml")))
    if kind == "mix":
        return {name: file for name, file in found.items() if name.startswith(MIX)}
    return {name: file for name, file in found.items() if not name.startswith((MIX, TAXONOMY))}


def find(given: str | Path, *kinds: Kind) -> Path:
    """The file at a path, or the shipped one of that name. ValueError: neither; it lists the names."""
    path, names = Path(given), {name: file for kind in kinds for name, file in shipped(kind).items()}
    if path.is_file():
        return path
    if str(given) in names:
        return names[str(given)]
    meant = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    raise ValueError(f"{given}: no such file, and not the name of a shipped one{hint}; one of {', '.join(names)}")


def _by_name(found: Sequence[Path]) -> dict[str, Path]:
    return {file.stem: file for file in found}
