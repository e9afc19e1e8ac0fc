"""Attacks without any knowledge of the guard: same requests, other images or words, the same ones for everybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safevlm.data.images import open_image
from safevlm.evaluation.attacks.blind import ROWS as BLIND
from safevlm.evaluation.attacks.row import AttackRow
from safevlm.evaluation.attacks.words import ROWS as WORDS
from safevlm.types import Sample
from tests.evaluation.attacks.attacked import job

each_image_attack = pytest.mark.parametrize("row", BLIND, ids=lambda row: row.name)
each_word_attack = pytest.mark.parametrize("row", WORDS, ids=lambda row: row.name)


def made(row: AttackRow, folder: Path, **given: object) -> list[Sample]:
    answers = {f"scene/{number}": f"answer {number}" for number in range(4)}
    return row.make(job(folder, strength=row.strength, answers=answers, **given))


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(open_image(sample.request.images[0]))


@each_image_attack
def test_attacked_request_is_the_same_one_about_another_image(row: AttackRow, tmp_path: Path) -> None:
    before = job(tmp_path).samples
    for sample, old in zip(made(row, tmp_path), before, strict=True):
        assert replace(sample, request=replace(sample.request, images=old.request.images)) == old
        assert Image.open(str(sample.request.images[0])).format == "PNG"
        changed, own = pixels(sample), pixels(old)
        assert changed.shape != own.shape or (changed != own).any()


@each_image_attack
def test_image_is_changed_alike_whatever_else_is_attacked(row: AttackRow, tmp_path: Path) -> None:
    whole = made(row, tmp_path / "whole")
    alone = job(tmp_path / "alone", strength=row.strength)
    last = row.make(replace(alone, samples=alone.samples[-1:]))
    np.testing.assert_array_equal(pixels(whole[-1]), pixels(last[0]))


def test_image_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    row = next(row for row in BLIND if row.name == "invert")
    first = made(row, tmp_path)[0].request.images[0]
    Image.new("RGB", (8, 8)).save(str(first))
    assert open_image(made(row, tmp_path)[0].request.images[0]).size == (8, 8)


def test_ids_that_no_file_may_have_as_a_name_keep_apart(tmp_path: Path) -> None:
    own = job(tmp_path)
    odd = [
        replace(sample, request=replace(sample.request, id=id))
        for sample in own.samples[:2]
        for id in ("a/b", "a b", "../a")
    ]
    assert len({own.place(sample) for sample in odd}) == 3
    assert all(own.place(sample).parent == own.folder for sample in odd)


@each_word_attack
def test_attack_by_words_keeps_the_images_and_the_id(row: AttackRow, tmp_path: Path) -> None:
    for sample, old in zip(made(row, tmp_path), job(tmp_path).samples, strict=True):
        assert sample.request.images == old.request.images and sample.request.id == old.request.id
        assert sample.request != old.request
        assert sample.request.turns[-1][1] == 1 or not sample.request.history, "the image goes with its question"


def test_history_of_compliance_is_of_other_requests(tmp_path: Path) -> None:
    row = next(row for row in WORDS if row.name == "compliance")
    for number, sample in enumerate(made(row, tmp_path)):
        assert sample.request.history and f"answer {number}" not in dict(sample.request.history).values()
