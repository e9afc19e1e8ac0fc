"""`run.json`: what an audit's shards were made with. Shards of two settings must never meet in one result."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import write_new
from safevlm.files import read_json

log = logging.getLogger(__name__)

NAME = "run.json"
LATER = {"fingerprint_gap": "near-duplicates of which one is in an older shard may be missed"}
"""What earlier versions did not write, and what a mixture with theirs means. It is told, and goes on."""


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings of a fresh audit, or compares them with those of the shards that are there.

    ValueError names every setting that differs. Several processes may claim a folder at once.
    """
    path = folder / NAME
    if not write_new(path, json.dumps(settings, indent=1) + "\n"):
        _compare(path, settings)


def _compare(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not the record of an audit ({error}); choose another --out") from error
    keys = sorted({*found, *settings} if isinstance(found, dict) else settings)
    for key in LATER.keys() & settings.keys():
        if isinstance(found, dict) and key not in found:
            found[key] = settings[key]
            log.warning("%s: an audit of an earlier version, without %s: %s", path, key, LATER[key])
    differing = [key for key in keys if not isinstance(found, dict) or found.get(key) != settings.get(key)]
    if differing:
        told = "; ".join(_change(key, found, settings) for key in differing)
        raise ValueError(f"{path}: an audit with other settings is here ({told}); set them back, or take another --out")


def _change(key: str, found: Any, settings: Mapping[str, Any]) -> str:
    before = found.get(key) if isinstance(found, dict) else None
    return f"{key}: {_short(before)}, now {_short(settings.get(key))}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:16]}…"
