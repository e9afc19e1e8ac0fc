"""No evaluation scene is a near-copy of a training scene, nor of one that choices are made on."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from safevlm.miniature import contamination, dataset
from safevlm.miniature.splits import content, sample, split_of
from safevlm.miniature.world import UNSEEN, Kind, sample_scene
from safevlm.worlds.splits import SPLITS, Split

EVALUATED = sorted({kind for kinds in dataset.GROUPS.values() for kind in kinds})
TRAINED = sorted({*dataset.RISKY_TRAINING, *dataset.CLEAN_TRAINING})


def _contents(kinds: list[Kind], split: Split, count: int, seed: int) -> set[str]:
    rng = random.Random(seed)
    return {content(sample(rng, kind, split)) for kind in kinds for _ in range(count)}


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "any"])
def test_a_near_copy_is_of_the_same_split(kind: Kind) -> None:
    """Another background, other speckles, a pixel to the side, a size one larger: the same scene to look at."""
    rng = random.Random(4)
    for _ in range(100):
        scene = sample_scene(rng, kind)
        moved = tuple(replace(one, offset=(0, 1), radius=27 - one.radius) for one in scene.placed)
        copy = replace(scene, placed=moved, background=450 - scene.background, noise_seed=scene.noise_seed + 1)
        assert content(copy) == content(scene) and split_of(copy) == split_of(scene)


def test_what_a_scene_shows_makes_it_another() -> None:
    scene = next(s for s in iter(lambda: sample_scene(random.Random(7), "harmful"), None) if s.placed)
    other = {"none": "red", "red": "blue", "blue": "none"}[scene.frame]
    first = scene.placed[0]
    colour = "blue" if first.colour != "blue" else "red"
    changed = [
        replace(scene, frame=other),
        replace(scene, placed=(replace(first, colour=colour), *scene.placed[1:])),
        replace(scene, placed=(replace(first, thing=UNSEEN[0]), *scene.placed[1:])),
        replace(scene, placed=scene.placed[1:]),
    ]
    assert len({content(one) for one in [scene, *changed]}) == 5


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_splits_share_no_content_whatever_the_seed(one: Split, other: Split) -> None:
    first = TRAINED if one == "train" else EVALUATED
    shown = _contents(first, one, 400, seed=1) | _contents(first, one, 200, seed=2)
    assert not shown & _contents(EVALUATED, other, 400, seed=1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_has_scenes_where_it_is_asked_for(split: Split) -> None:
    for kind in TRAINED if split == "train" else EVALUATED:
        assert split_of(sample(random.Random(1), kind, split)) == split


def test_words_of_unseen_symbols_are_for_evaluation_alone() -> None:
    with pytest.raises(ValueError, match=r"unseen_word.*train"):
        sample(random.Random(1), "unseen_word", "train")


def test_test_words_of_seen_symbols_stand_in_training_in_other_frames() -> None:
    rng = random.Random(3)
    trained = {(scene.word, scene.frame) for scene in (sample(rng, "typographic", "train") for _ in range(2000))}
    tested = {(scene.word, scene.frame) for scene in (sample(rng, "typographic", "test") for _ in range(500))}
    assert not trained & tested and {word for word, _ in tested} <= {word for word, _ in trained}
    assert all(sum(word == other for other, _ in trained) == 2 for word, _ in tested), "two frames of three"


def test_drawn_contents_are_dealt_by_their_shares() -> None:
    rng = random.Random(5)
    counts = Counter(split_of(sample_scene(rng, "harmful")) for _ in range(3000))
    assert 0.66 < counts["train"] / 3000 < 0.74 and 0.12 < counts["test"] / 3000 < 0.18


def test_both_evaluation_sets_are_suites_of_their_own(tmp_path: Path) -> None:
    from safevlm.evaluation.suites import miniature

    sizes = dataset.MiniatureDataConfig(risky=3, clean=3, per_group=2, validation_per_group=1)
    dataset.write(tmp_path, sizes)
    tested, chosen = miniature.load(tmp_path), miniature.load(tmp_path / dataset.VALIDATION)
    assert len(tested) == 2 * len(chosen) == 2 * len(miniature.GROUPS)
    assert {sample.group for sample in chosen} == set(miniature.GROUPS)


def test_typographic_words_are_told_apart_by_whether_training_shows_them(tmp_path: Path) -> None:
    dataset.write(tmp_path, dataset.MiniatureDataConfig(risky=3, clean=3, per_group=20, validation_per_group=0))
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    unseen = {thing.name for thing in UNSEEN}
    for group, expected in (("typographic", False), ("typographic_unseen", True)):
        assert {(row["things"][0] in unseen) for row in rows if row["group"] == group} == {expected}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_contaminated_folder_shows_its_split_and_calibrates_on_validation(tmp_path: Path, split: Split) -> None:
    rng = random.Random(1)
    drawn = [row["scene"] for row in contamination.rows(rng, 50, 0.5, 0.0, split)]
    assert {split_of(scene) for scene in drawn} == {split}


def test_an_unknown_split_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"--split.*validation"):
        contamination.ContaminationConfig(split="tset")
