"""Attacks done one after the other: each starts from what came of the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from safevlm.data.images import open_image
from safevlm.evaluation.attacks.table import attack_of
from safevlm.types import Sample
from tests.evaluation.attacks.attacked import job


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(open_image(sample.request.images[0]), dtype=np.int16)


def test_later_attack_changes_what_came_of_the_earlier_one(tmp_path: Path) -> None:
    asked = job(tmp_path)
    turned = attack_of("rotate:30").make(replace(asked, folder=tmp_path / "turned"))
    both = attack_of("rotate:30+uniform:3+forged-turn").make(asked)
    for own, first, other in zip(asked.samples, turned, both, strict=True):
        moved = abs(pixels(other) - pixels(first))
        assert 0 < moved.max() <= 3 < abs(pixels(other) - pixels(own)).max()
        assert own.request.text in other.request.text and other.request.text != own.request.text
        assert other.request.id == own.request.id


def test_image_of_the_last_attack_is_the_one_that_lies_in_the_folder(tmp_path: Path) -> None:
    asked = job(tmp_path)
    for sample in attack_of("mirror+uniform:3").make(asked):
        assert sample.request.images[0] == asked.place(sample)
