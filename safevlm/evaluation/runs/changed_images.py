"""Questions about changed images, which are kept as PNG: every defense is asked about the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from safevlm.data.atomic_write import atomic_file
from safevlm.data.images import open_image
from safevlm.data.perturbations import Perturbation, digest
from safevlm.types import Sample

FOLDER = "images"
BAR_FROM = 200  # requests; fewer are changed at once


def changed(samples: Sequence[Sample], perturbation: Perturbation, folder: Path) -> list[Sample]:
    """The same samples about changed images, which lie in the folder; those that lie there already are kept."""
    bar = tqdm(samples, desc=str(perturbation), unit="request", disable=len(samples) < BAR_FROM)
    return [
        replace(sample, request=replace(sample.request, images=_stored(sample, perturbation, folder))) for sample in bar
    ]


def _stored(sample: Sample, perturbation: Perturbation, folder: Path) -> tuple[Path, ...]:
    return tuple(_store(Path(str(image)), perturbation, folder) for image in sample.request.images)


def _store(source: Path, perturbation: Perturbation, folder: Path) -> Path:
    """Named by what was changed and how, so that runs may share a folder. Whole or not at all."""
    image = open_image(source)
    place = folder / f"{source.stem}-{perturbation.name}{perturbation.strength:g}-{digest(image)}.png"
    if not place.exists():
        with atomic_file(place) as partial:
            perturbation(image).save(partial, "PNG")
    return place
