"""Ablation of SafeCLIP's detector: which CLS, layernorm or not, which τ, which bank (`eval/ablations/safe_clip.sh`).

    safevlm analyze safe-clip --model DIR --bank [NAME=]FILE … --data FILE --out FILE [--summary FILE]

Every image goes through the tower once; all four readings of its CLS are kept, and every bank reads all of them. What
is counted is what is flagged: whether the model then declines is measured by `safevlm eval`, whose `summary.json`
is put beside these numbers. The trap: τ and templates that were chosen on these images flatter themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict

from safevlm.analysis import detection
from safevlm.analysis.labelled_images import ImageSet, LabelledImage, read_sets
from safevlm.data.made_by import write_result
from safevlm.defenses.bank import Bank, read_bank
from safevlm.defenses.safe_clip import READINGS
from safevlm.files import checked, read_json
from safevlm.intervals import share
from safevlm.usage import UsageError

TAUS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""0: the arg-max alone."""

Claims = NDArray[np.bool_]


def ablate(model: str, banks: Mapping[str, Path], data: Sequence[str], device: str = "auto") -> dict[str, Any]:
    """By bank and reading: what is flagged of each group of images, at the bank's τ and at others."""
    loaded = detection.load(model, device)
    if "paper" not in loaded.safe_llava.clip_features:
        raise UsageError(
            f"--model {model}: readings of the CLS are compared on LLaVA-v1.5; of this model there is one at most"
        )
    taxonomy = loaded.safe_llava.config.taxonomy
    sets = read_sets(data, taxonomy, by_group=True)
    seen = {
        one.name: torch.stack(
            detection.detect_all(loaded, one.images, lambda _, features: _readings(features), title=one.name)
        )
        for one in sets
    }
    tower = loaded.safe_llava.tower_state()
    found = {}
    for name, file in banks.items():
        bank = read_bank(file, taxonomy)
        bank.check_tower(tower, file)
        found[name] = _of_bank(bank, sets, seen)
    return {"model": model, "data": list(data), "banks": found}


def _readings(features: Any) -> Tensor:
    """(readings, v) of a request's only image."""
    return torch.stack([reading(features.vision)[0].float().cpu() for reading in READINGS.values()])


class SummaryFile(TypedDict):
    """What is read of an evaluation's `summary.json`."""

    suites: dict[str, Any]


Rows = Mapping[str, tuple[Sequence[LabelledImage], NDArray[np.float32]]]
"""By group: its images, and (n, c) probabilities of the concepts."""


def _of_bank(bank: Bank, sets: Sequence[ImageSet], seen: Mapping[str, Tensor]) -> dict[str, Any]:
    readings = {}
    for at, reading in enumerate(READINGS):
        rows = {one.name: (one.images, bank.probabilities(seen[one.name][:, at]).numpy()) for one in sets}
        flagged = {tau: _flagged(bank, rows, tau) for tau in (bank.facts.tau, *TAUS)}
        readings[reading] = {
            "at_tau": {name: _described(bank, *rows[name], claims) for name, claims in flagged[bank.facts.tau].items()}
            | {"false_positive_rate": share(_false_alarms(rows, flagged[bank.facts.tau])).to_dict()},
            "by_tau": {
                str(tau): {
                    **{name: float(claims.mean()) for name, claims in flagged[tau].items()},
                    "false_positive_rate": share(_false_alarms(rows, flagged[tau])).value,
                }
                for tau in TAUS
            },
        }
    facts = asdict(bank.facts) | {"templates": len(bank.texts), "concepts": [one.name for one in bank.concepts]}
    return facts | {"readings": readings}


def _flagged(bank: Bank, rows: Rows, tau: float) -> dict[str, Claims]:
    neutral = np.array([concept.is_neutral for concept in bank.concepts])
    return {
        name: ~neutral[probabilities.argmax(1)] & (probabilities.max(1) > tau)
        for name, (_, probabilities) in rows.items()
    }


def _described(
    bank: Bank, images: Sequence[LabelledImage], probabilities: NDArray[np.float32], flagged: Claims
) -> dict[str, Any]:
    said = np.array([concept.category for concept in bank.concepts])[probabilities.argmax(1)]
    right = flagged & (said == np.array([image.category for image in images]))
    return {"flagged": share(flagged).to_dict(), "flagged_as_its_category": share(right).to_dict()}


def _false_alarms(rows: Rows, flagged: Mapping[str, Claims]) -> Claims:
    """Of all clean images."""
    clean = {name: np.array([image.is_clean for image in images]) for name, (images, _) in rows.items()}
    return np.concatenate([claims[clean[name]] for name, claims in flagged.items()])


def write(
    out: Path,
    model: str,
    banks: Mapping[str, Path],
    data: Sequence[str],
    *,
    summary: Path | None = None,
    device: str = "auto",
) -> None:
    """The table as JSON. `summary`: an evaluation's, whose rates stand beside it."""
    table = {"schema": 1, **ablate(model, banks, data, device)}
    if summary:
        table["defenses"] = checked(SummaryFile, read_json(summary), str(summary), more=True)["suites"]
    files = [value.partition("=")[2] or value for value in data]
    write_result(out, table, {"model": model, "data": files, "banks": list(banks.values())})
