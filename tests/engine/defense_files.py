"""The files that defenses bring along, made for the tiny models of `engines`: a checkpoint's `defenses` folder."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from safevlm.defenses import FOLDER
from safevlm.model.safe_llava import SafeLlava


def folder(model: SafeLlava, says: tuple[str, str] | None = None) -> Path:
    """A checkpoint folder that holds nothing but defenses' files; `says` is what SafeCLIP sees in every image."""
    return Path(_written(model, says).name)


@functools.lru_cache(maxsize=32)  # a folder is removed with its row
def _written(model: SafeLlava, says: tuple[str, str] | None) -> TemporaryDirectory[str]:
    from tests.defenses import banks, probes, tensors  # late: they build on `engines`, which builds on this

    kept = TemporaryDirectory(prefix="tiny-defenses-")
    banks.write(model, Path(kept.name) / FOLDER, says)
    banks.write_companion(model, Path(kept.name) / FOLDER / "companion", says)
    tensors.write(model, Path(kept.name) / FOLDER)
    probes.write(model, Path(kept.name) / FOLDER, says)
    return kept
