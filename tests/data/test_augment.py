"""Images that come otherwise: labels stay true, and the same is drawn wherever and whenever it is drawn."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from safevlm.config import DataConfig, ModelConfig, Recipe, RunConfig
from safevlm.data.augment import AUGMENTATIONS, WITH_OTHERS, Augmentation, check, parse
from safevlm.data.records import Record
from safevlm.taxonomy import DEFAULT
from tests.training import workshop

SIZE = (40, 30)
RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)
CLEAN = {"safe_type": DEFAULT.category_id("clean"), "safe_level": 0}
RISKY = {"safe_type": 0, "safe_level": 2}


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """A red risky image, a blue one without labels, and green clean ones."""
    made = []
    for index, (colour, labels) in enumerate([(RED, RISKY), (BLUE, {}), (GREEN, CLEAN), (GREEN, CLEAN)]):
        Image.new("RGB", SIZE, colour).save(tmp_path / f"{index}.png")
        made.append(Record(str(index), f"x:{index}", (), (tmp_path / f"{index}.png",), **labels))
    return made


def _augmentation(records: list[Record], *augment: str, share: float = 1.0, seed: int = 0) -> Augmentation:
    recipe = Recipe(
        "stage1",
        ModelConfig("x"),
        DataConfig(["x"], augment=list(augment), augment_share=share),
        RunConfig("x", seed=seed),
        loss=dataclasses.replace(Recipe.__dataclass_fields__["loss"].default, lm=0.0),
    )
    made = Augmentation.of(recipe, records, DEFAULT)
    assert made is not None
    return made


def _photo(seed: int = 0) -> Image.Image:
    """Something with an inside: smooth, and no two parts alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_change_keeps_size_and_mode_and_changes(records: list[Record], name: str) -> None:
    augmentation = _augmentation(records, name)
    made = augmentation(_photo(), records[-1], 0)
    assert (made.size, made.mode) == (SIZE, "RGB") and made.tobytes() != _photo().tobytes()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_drawn_hangs_on_seed_epoch_and_record(records: list[Record], name: str) -> None:
    first, again = (_augmentation(records, name) for _ in range(2))
    shown = [first(_photo(), record, 0).tobytes() for record in records]
    assert [again(_photo(), record, 0).tobytes() for record in reversed(records)][::-1] == shown
    if AUGMENTATIONS[name].strength is None:
        return
    again.epoch = 1
    other = _augmentation(records, name, seed=1)
    for changed in (again, other):
        assert [changed(_photo(), record, 0).tobytes() for record in records] != shown


@pytest.mark.parametrize("name", [name for name, kind in AUGMENTATIONS.items() if kind.change in WITH_OTHERS])
def test_an_image_lies_whole_beside_clean_ones_alone(records: list[Record], name: str) -> None:
    augmentation = _augmentation(records, name)
    photo = Image.open(records[0].images[0])
    for epoch in range(20):
        augmentation.epoch = epoch
        pixels = np.asarray(augmentation(photo, records[0], 0), dtype=int)
        red, green, blue = (np.abs(pixels - colour).max(-1) < 20 for colour in (RED, GREEN, BLUE))
        own = (SIZE[0] // 2) * (SIZE[1] // 2)
        assert red.sum() >= own * 0.95, "too small to be read"
        assert green.any() and not blue.any(), "beside it lie clean images, never one that nobody has labelled"


def test_a_share_of_the_images_is_changed(records: list[Record]) -> None:
    augmentation = _augmentation(records, "invert", share=0.25)
    changed = 0
    for epoch in range(400):
        augmentation.epoch = epoch
        changed += augmentation(_photo(), records[0], 0).tobytes() != _photo().tobytes()
    assert 60 < changed < 140


def test_strength_lies_between_none_and_the_utmost() -> None:
    (choice,) = parse(["rotate:20"])
    turned = [choice.kind.none + draw * (choice.strength - choice.kind.none) for draw in (0, 1)]
    assert turned == [0, 20] and AUGMENTATIONS["scale"].none == 100, "unchanged at one end"
    photo = _photo()
    assert AUGMENTATIONS["scale"].change(photo, 100, random.Random(0), lambda: photo).tobytes() == photo.tobytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [("twist", "twist"), ("rotate:999", "0-180"), ("rotate:x", "0-180"), ("mirror:3", "no strength"), ("", "unknown")],
)
def test_what_cannot_be_is_named_with_its_key(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.augment.*{told}"):
        parse([text])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_changes_that_alter_what_an_answer_says_are_for_the_head_alone(name: str, tmp_path: Path) -> None:
    """What is said of an image beside another one, or of a part of it, is not said of the image."""
    learned = [
        workshop.recipe(tmp_path, tmp_path, tmp_path, "stage2", data={"augment": [name]}, loss={"lm": lm})
        for lm in (0.0, 1.0)
    ]
    check(learned[0])
    if AUGMENTATIONS[name].keeps_answers:
        check(learned[1])
        return
    with pytest.raises(ValueError, match=rf"data\.augment: {name}.*loss\.lm"):
        check(learned[1])


def test_no_change_that_brings_or_takes_away_things_keeps_answers() -> None:
    assert not any(
        AUGMENTATIONS[name].keeps_answers for name in ("crop", "parts", "collage", "mosaic", "mirror", "invert")
    )


def test_a_collage_needs_clean_records(records: list[Record]) -> None:
    with pytest.raises(ValueError, match=r"data\.augment: collage.*clean"):
        _augmentation(records[:2], "mirror", "collage")
    assert _augmentation(records[:2], "mirror")(_photo(), records[0], 0).tobytes() != _photo().tobytes()


def test_parts_are_taken_of_clean_images_alone(records: list[Record]) -> None:
    """A part of a risky image may be harmless, and of one without labels nobody knows."""
    augmentation = _augmentation(records, "parts", "mirror")
    alone = _augmentation(records, "parts")
    mirrored = ImageOps.mirror(_photo()).tobytes()
    for epoch in range(10):
        alone.epoch = augmentation.epoch = epoch
        for record in records[:2]:
            assert alone(_photo(), record, 0).tobytes() == _photo().tobytes()
            assert augmentation(_photo(), record, 0).tobytes() == mirrored
        assert alone(_photo(), records[2], 0).tobytes() != _photo().tobytes()


def test_a_part_shows_nothing_but_the_image() -> None:
    photo, draw = _photo(), random.Random(0)
    assert AUGMENTATIONS["parts"].change(photo, 100, draw, lambda: photo).tobytes() == photo.tobytes()
    wide = Image.new("RGB", SIZE, RED)
    wide.paste(GREEN, (SIZE[0] // 2, 0, *SIZE))
    seen = [np.asarray(AUGMENTATIONS["parts"].change(wide, 40, draw, lambda: wide), dtype=int) for _ in range(40)]
    greens = [float((np.abs(one - GREEN).max(-1) < 60).mean()) for one in seen]
    assert min(greens) < 0.05 and max(greens) > 0.95 and len(set(greens)) > 10
