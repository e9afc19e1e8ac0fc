"""Steps of a build: a folder each, with the settings that made it. A finished one is not made again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from safevlm.data.atomic_write import atomic_folder
from safevlm.data.made_by import Places, digest, write_result
from safevlm.files import read_json

RUN = "run.json"
"""What made a step, beside what it made."""


def make(
    folder: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Places],
    device: torch.device,
    step: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """The record of a step, made now unless it is there; `step` writes to a folder and tells what it measured.

    ValueError: it is there, and was made with other settings or of other inputs.
    """
    wanted = {**settings, **{f"digest of {name}": digest(places) for name, places in inputs.items()}}
    if (folder / RUN).is_file():
        record: dict[str, Any] = read_json(folder / RUN)
        check_same(folder, record["settings"], wanted)
        print(f"{folder}: made before")
        return record
    started = time.monotonic()
    with atomic_folder(folder) as partial:
        measured = step(partial)
        seconds = round(time.monotonic() - started)
        whole = {
            "settings": wanted,
            "seconds": seconds,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": name_of(device),
            "measured": measured,
        }
        write_result(partial / RUN, whole, inputs)
    print(f"{folder}: made in {seconds} s")
    return whole


def name_of(device: torch.device) -> str:
    """`cpu`, or the card's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def check_same(place: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ValueError: settings differ; it names both."""
    others = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    if others:
        told = ", ".join(f"{name} {made.get(name)!r}, not {wanted.get(name)!r}" for name in others)
        raise ValueError(f"{place} was made with {told}; give these, another --out, or remove it")
