"""Files of learned defenses: tensors, words about them, and fingerprints of the model that they were learned for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_patch.fingerprint import PARTS, Fingerprints, differing
from safevlm.data.atomic_write import atomic_file
from safevlm.files import load_json

log = logging.getLogger(__name__)

BASE = "base."
"""Stands before each part's fingerprint in the file."""


@dataclass(frozen=True)
class LearnedFile:
    """What such a file holds."""

    tensors: Mapping[str, Tensor]
    """float32, on the CPU."""
    words: Mapping[str, Any]
    """What it is and how it came about, by name; anything that JSON can say."""
    base: Fingerprints = field(default_factory=dict)
    """Of the model that it was learned for; empty in files from before there were any."""


def write(file: Path, kind: str, learned: LearnedFile) -> None:
    """`kind`: name and version of the format. ValueError: values that are not finite; nothing is written then."""
    metadata = {"format": kind, **{name: json.dumps(value) for name, value in learned.words.items()}}
    tensors = {**learned.tensors, **{f"{BASE}{part}": values for part, values in learned.base.items()}}
    whole = {name: values.detach().float().cpu().contiguous() for name, values in tensors.items()}
    broken = next((name for name, values in whole.items() if not values.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{file}: {broken} holds NaN or infinite values; nothing was saved; lower optim.lr")
    with atomic_file(file) as partial:
        save_file(whole, partial, metadata=metadata)


def read(file: Path, kind: str, what: str) -> LearnedFile:
    """ValueError: no such file, another kind of it (`what` this one is, in words), or values that are not finite."""
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: no {what}: {error}") from error
    if metadata.get("format") != kind:
        raise ValueError(f"{file}: no {what}; its format is {metadata.get('format')!r}, not {kind!r}")
    words = {name: load_json(value, f"{file}: {name}") for name, value in metadata.items() if name != "format"}
    base = {name.removeprefix(BASE): values for name, values in tensors.items() if name.startswith(BASE)}
    own = {name: values for name, values in tensors.items() if not name.startswith(BASE)}
    if not all(values.isfinite().all() for values in own.values()):
        raise ValueError(f"{file}: holds values that are not finite")
    return LearnedFile(own, words, base)


def check_base(
    file: Path, words: Mapping[str, Any], base: Fingerprints, model: Fingerprints, parts: Iterable[str] = PARTS
) -> None:
    """ValueError: learned for another model of the same shapes. What has no fingerprints is told in a warning."""
    learned_for = words.get("base", "another model")
    if not base or not model:
        log.warning("%s: has no fingerprints, so nobody can say whether this model is its own (%s)", file, learned_for)
    elif differ := differing(base, model, parts):
        raise ValueError(f"{file}: learned for {learned_for}, and this model's {', '.join(differ)} differ; train anew")
