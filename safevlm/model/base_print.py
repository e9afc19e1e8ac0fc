"""Whether a folder's base model is the one that it was made for.

A guard and a LoRA fit one base. On another of the same shapes they load, and what comes out means nothing. A folder
that stands on a base (`safety`, `adapter`) or lies in one (`guarded`) therefore carries its base's fingerprints, a few
values of every tensor: a copy that was moved, cut into other shards or rounded to 16 bits is still the same base.
"""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llava_patch import fingerprint
from llava_patch.fingerprint import Fingerprints
from llava_patch.tensor_file import save_tensors

FILE = "base.safetensors"
FORMAT = "safevlm base 1"
ALL = ", ".join(fingerprint.PARTS)

log = logging.getLogger(__name__)


def write(folder: Path, base: str, found: Fingerprints) -> None:
    """Writes a base's fingerprints into a folder; `base` is how messages will call it."""
    save_tensors(found, folder / FILE, {"format": FORMAT, "base": base})


def read(folder: Path) -> tuple[str, Fingerprints] | None:
    """The base's name and fingerprints; None: the folder is older than they are. ValueError: a damaged file."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            metadata, found = stored.metadata() or {}, {part: stored.get_tensor(part) for part in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: broken or truncated: {error}; save the checkpoint again") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{file}: its format is {metadata.get('format')!r}, not {FORMAT!r}; save the checkpoint again")
    return metadata.get("base", ""), found


def check(folder: Path, base: Path, found: Fingerprints) -> None:
    """ValueError, naming both and the parts that differ, unless `folder` was made for the base with these fingerprints.

    A folder without any is told in a warning.
    """
    own = read(folder)
    if own is None:
        log.warning("%s: has no %s, so nobody can say whether %s is its base (%s)", folder, FILE, base, ALL)
        return
    if parts := fingerprint.differing(own[1], found):
        raise ValueError(
            f"{folder}: trained on {own[0]}, and {base} is another model: {', '.join(parts)} differ; say where the "
            "right one is with --base DIR"
        )


def check_sidecar(folder: Path, sidecar: Path, found: Fingerprints) -> None:
    """The same for a guard inside its base. The LLM's layers may be tuned further: no verdict depends on them."""
    own = read(sidecar)
    if own is None:  # it has a hash of the bytes instead (`safevlm.model.export`)
        return
    parts = fingerprint.differing(own[1], found)
    if fingerprint.SEEN.intersection(parts):
        raise ValueError(
            f"{sidecar}: this guard belongs to another model ({own[0]}) than {folder}: {', '.join(parts)} differ; "
            "export both together: safevlm merge … --stock"
        )
    if parts:
        log.warning("%s: the %s beside this guard is not that of %s; verdicts stay", folder, ", ".join(parts), own[0])
