"""The miniature world is what it claims: no shape tells a category, unseen symbols stay unseen, seeds fix all bytes."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safevlm.miniature import dataset, drawing, words, world
from safevlm.miniature.splits import sample
from safevlm.miniature.world import (
    BENIGN,
    BY_NAME,
    FRAME_SHIFT,
    LOOKALIKES,
    RISKY,
    RISKY_NAMES,
    SEEN,
    THINGS,
    UNSEEN,
    Scene,
    sample_scene,
)
from safevlm.taxonomy import CLEAN, DEFAULT
from safevlm.worlds.suite_files import turns

SIZES = dataset.MiniatureDataConfig(risky=60, clean=60, per_group=12, validation_per_group=2)
KINDS = ("benign", "lookalike", "benign_word", "harmful", "unseen", "typographic", "unseen_word", "any")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    dataset.write(out, SIZES)
    return out


@pytest.fixture(scope="module")
def training() -> set[Scene]:
    """The scenes behind many training records, without drawing them."""
    rng = random.Random(dataset.MiniatureDataConfig.train_seed)
    kinds = turns(dataset.RISKY_TRAINING, 1500) + turns(dataset.CLEAN_TRAINING, 1500)
    return {sample(rng, kind, "train") for kind in kinds}


def _rows(data: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _scenes(kind: str, count: int = 300, seed: int = 1) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, kind) for _ in range(count)]  # type: ignore[arg-type]


def _has_word(text: str, name: str) -> bool:
    return re.search(rf"\b{name}s?\b", text) is not None


# Things


def test_there_are_54_things_of_distinct_name_shape_and_steps() -> None:
    assert len(THINGS) == 54
    for what in (lambda t: t.name, lambda t: (t.outline, t.mark), lambda t: t.steps):
        assert len({what(thing) for thing in THINGS}) == 54, "two things cannot be told apart"
    assert len(BY_NAME) == 54 and all(BY_NAME[thing.name] is thing for thing in THINGS)


def test_steps_are_two_different_verbs() -> None:
    for thing in THINGS:
        first, second = thing.steps
        assert first != second and {first, second} <= set(world.VERBS)


def test_every_category_uses_every_outline_and_mark_once() -> None:
    for category in RISKY_NAMES:
        mine = [thing for thing in RISKY if thing.category == category]
        assert sorted(thing.outline for thing in mine) == sorted(world.OUTLINES), f"an outline tells {category}"
        assert sorted(thing.mark for thing in mine) == sorted(world.MARKS), f"a mark tells {category}"


def test_categories_are_the_taxonomys() -> None:
    assert {thing.category for thing in THINGS} == set(DEFAULT.category_names)
    assert set(RISKY_NAMES) == set(world.BASE_LEVEL) == set(DEFAULT.category_names) - {CLEAN}


def test_last_two_symbols_of_each_category_are_unseen() -> None:
    for names in RISKY_NAMES.values():
        assert [BY_NAME[name].seen for name in names] == [True] * 4 + [False] * 2
    assert len(SEEN) == 24 and len(UNSEEN) == 12 and not set(SEEN) & set(UNSEEN)


def test_lookalikes_have_risky_outlines_and_a_mark_of_their_own() -> None:
    assert {thing.outline for thing in LOOKALIKES} == set(world.OUTLINES)
    assert {thing.mark for thing in LOOKALIKES} == {world.LOOKALIKE_MARK}
    assert world.LOOKALIKE_MARK not in {thing.mark for thing in RISKY}
    assert not {thing.outline for thing in BENIGN} & set(world.OUTLINES)


def test_all_shapes_can_be_drawn() -> None:
    assert {thing.outline for thing in THINGS} == set(drawing.OUTLINE_POINTS)
    assert {thing.mark for thing in THINGS} == set(drawing.MARK_STROKES)


# Scenes


@pytest.mark.parametrize("kind", KINDS)
def test_scene_has_one_to_three_things_and_at_most_one_risky(kind: str) -> None:
    for scene in _scenes(kind):
        assert 1 <= len(scene.things) <= 3
        assert sum(thing.is_risky for thing in scene.things) <= 1, "two risks in a scene would need two labels"
        assert len(set(scene.things)) == len(scene.things)
        quadrants = [placed.quadrant for placed in scene.placed]
        assert quadrants == sorted(set(quadrants)), "things overlap, or are not in reading order"


def test_kinds_hold_what_they_are_named_after() -> None:
    def risky(scene: Scene) -> list[world.Thing]:
        return [thing for thing in scene.things if thing.is_risky]

    assert all(risky(scene)[0].seen and not scene.word for scene in _scenes("harmful"))
    assert all(not risky(scene)[0].seen and not scene.word for scene in _scenes("unseen"))
    assert all(scene.word and risky(scene)[0].seen for scene in _scenes("typographic"))
    assert all(scene.word and not risky(scene)[0].seen for scene in _scenes("unseen_word"))
    assert all(scene.word and not risky(scene) for scene in _scenes("benign_word"))
    assert all(
        not risky(scene) and any(thing in LOOKALIKES for thing in scene.things) for scene in _scenes("lookalike")
    )
    assert all(set(scene.things) <= set(BENIGN) for scene in _scenes("benign"))


def test_any_shows_the_whole_world_drawn_and_written() -> None:
    scenes = _scenes("any", 3000)
    assert {placed.thing for scene in scenes for placed in scene.placed} == set(THINGS)
    assert {scene.word for scene in scenes if scene.word} == set(THINGS)


def test_level_follows_the_frame_and_not_the_category_alone() -> None:
    by_category: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for scene in _scenes("harmful", 2000) + _scenes("unseen", 1000):
        by_category[scene.category][scene.frame].add(scene.level)
    for category, levels in by_category.items():
        assert set(levels) == set(FRAME_SHIFT)
        assert all(len(found) == 1 for found in levels.values()), (
            f"{category}: the level is not a function of the scene"
        )
        assert len(set.union(*levels.values())) > 1, f"{category} alone tells the level: there is nothing to learn"
        order = [DEFAULT.level_id(next(iter(levels[frame]))) for frame in ("blue", "none", "red")]
        assert order == sorted(order) and order[0] >= 1 and order[-1] <= 3
    assert all(scene.level == DEFAULT.level_names[0] for scene in _scenes("lookalike")), "a frame alone is no risk"
    by_level = defaultdict(set)
    for category, levels in by_category.items():
        for level in set.union(*levels.values()):
            by_level[level].add(category)
    assert all(len(categories) > 1 for categories in by_level.values()), "a level tells the category"


# Images


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_is_deterministic_and_64_by_64_rgb(kind: str) -> None:
    for scene in _scenes(kind, 5):
        image = drawing.draw(scene)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert image.tobytes() == drawing.draw(scene).tobytes(), "one scene, two images"


def test_drawing_leaves_the_global_random_state_alone() -> None:
    random.seed(3)
    state = random.getstate()
    drawing.draw(_scenes("any", 1)[0])
    turns(("benign",), 3)
    assert random.getstate() == state


def test_all_54_shapes_look_different() -> None:
    images = {}
    for thing in THINGS:
        placed = world.PlacedThing(thing, "red", 0, (0, 0), 12)
        images[thing.name] = np.asarray(drawing.draw(Scene((placed,), None, "none", 230, 7)))
    for first, second in itertools.combinations(images, 2):
        differing = (images[first] != images[second]).any(-1).sum()
        assert differing > 10, f"{first} and {second} are nearly the same image: {differing} pixels differ"


def test_frame_colour_and_word_can_be_seen() -> None:
    thing = THINGS[0]

    def seen(**changes: Any) -> bytes:
        fields = {"placed": (world.PlacedThing(thing, "red", 0, (0, 0), 12),), "word": None, "frame": "none"}
        return drawing.draw(Scene(**{**fields, **changes}, background=230, noise_seed=7)).tobytes()

    variants = [
        seen(),
        seen(frame="red"),
        seen(frame="blue"),
        seen(placed=(world.PlacedThing(thing, "blue", 0, (0, 0), 12),)),
        seen(placed=(), word=thing),
        seen(placed=(), word=THINGS[1]),
    ]
    assert len(set(variants)) == len(variants)


def test_every_word_fits_into_its_image() -> None:
    """A word that is cut off at the border would be an attack that nobody can read."""
    for thing, noise in itertools.product(THINGS, range(5)):
        image = np.asarray(drawing.draw(Scene((), thing, "none", 230, noise)))
        dark = (image.max(-1) < 120).any(0)
        assert dark.any() and not dark[0] and not dark[-1], f"{thing.name} reaches over the border"


# Data


def test_same_seed_writes_the_same_bytes(data: Path, tmp_path: Path) -> None:
    dataset.write(tmp_path, SIZES)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (data, tmp_path)
    )
    assert len(first) == 3 + 120 + 6 * (12 + 2)
    assert first == second, "two machines would train on different data"


def test_another_seed_writes_other_data(data: Path, tmp_path: Path) -> None:
    small = dataset.MiniatureDataConfig(
        risky=3, clean=3, per_group=1, validation_per_group=0, train_seed=5, eval_seed=6
    )
    dataset.write(tmp_path, small)
    assert _rows(tmp_path, "train")[0] not in _rows(data, "train")


def test_unseen_symbols_are_nowhere_in_training(data: Path, training: set[Scene]) -> None:
    for row in _rows(data, "train"):
        said = " ".join(turn["value"] for turn in row["conversations"])
        named = [thing.name for thing in UNSEEN if _has_word(said, thing.name)]
        assert not named, f"record {row['id']} names {named}, which only the evaluation may know"
    shown = {thing for scene in training for thing in scene.things}
    assert not shown & set(UNSEEN), "an unseen symbol is trained: the unseen group measures nothing"
    assert shown == set(THINGS) - set(UNSEEN)


def test_evaluation_images_never_occur_in_training(data: Path) -> None:
    pixels = {Image.open(path).tobytes() for path in (data / "train").iterdir()}
    for path in sorted([*(data / "eval").iterdir(), *(data / "validation" / "eval").iterdir()]):
        assert Image.open(path).tobytes() not in pixels, f"{path.name} was trained on"


def test_training_records_teach_what_is_true(data: Path) -> None:
    rows = _rows(data, "train")
    clean = DEFAULT.category_id(CLEAN)
    assert len(rows) == 120 and sum(row["safe_type"] == clean for row in rows) == 60
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        assert question.startswith("<image>\n") and (data / row["image"]).is_file()
        category, level = DEFAULT.category_names[row["safe_type"]], DEFAULT.level_names[row["safe_level"]]
        assert (category == CLEAN) == (level == DEFAULT.level_names[0])
        if category == CLEAN:
            assert answer.startswith(("There is a ", "Take the "))
        else:
            assert answer == words.safe_answer(level, category)
            assert not any(_has_word(answer, thing.name) for thing in RISKY), "a safe answer gives the risky help"


def test_categories_and_levels_are_spread_over_training(training: set[Scene]) -> None:
    counts = Counter((scene.category, scene.level) for scene in training if scene.category != CLEAN)
    by_category = Counter(category for category, _ in counts.elements())
    assert set(by_category) == set(RISKY_NAMES) and max(by_category.values()) < 1.6 * min(by_category.values())


def test_evaluation_groups_hold_what_they_claim(data: Path) -> None:
    rows = _rows(data, "eval")
    assert Counter(row["group"] for row in rows) == {name: 12 for name in (*dataset.GROUPS, "harmful_text")}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        things = [BY_NAME[name] for name in row["things"]]
        risky = [thing for thing in things if thing.is_risky]
        group = row["group"]
        assert len(risky) == (group not in ("benign", "lookalike")), row
        assert row["category"] == (risky[0].category if risky else CLEAN)
        assert (row["level"] == DEFAULT.level_names[0]) == (not risky)
        if risky:
            assert row["task"] == "use", "a harmful request asks for help, else an answer harms nobody"
        if group in ("harmful_seen", "typographic"):
            assert risky[0].seen
        if group in ("harmful_unseen", "typographic_unseen"):
            assert not risky[0].seen
        if group == "benign":
            assert set(things) <= set(BENIGN)
        if group == "harmful_text":
            assert row["image"] is None and _has_word(row["question"], risky[0].name)
        else:
            assert (data / row["image"]).is_file()
            assert not any(_has_word(row["question"], thing.name) for thing in THINGS), (
                "the question names what only the image may show"
            )


# Words


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words.build_tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "There is a vork and a cup.",
        "  blanks   and\ttabs\n\nlines ",
        "Grüße, 你好, 🙂, \u202eabc",
        "\x00\x7f",
        "<imag> </ s>",
        "".join(map(chr, range(32, 383))),
    ],
)
def test_tokenizer_writes_any_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text, "text does not come back"


def test_end_token_is_not_2(tokenizer: Any) -> None:
    """CLIP's text tower would take the file for a legacy one and pool at the wrong place (base facts §3.8)."""
    assert tokenizer.eos_token == "</s>" and tokenizer.eos_token_id != 2
    names = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(names)) == 4


def test_every_name_is_one_token(tokenizer: Any) -> None:
    for thing in THINGS:
        ids = tokenizer(f" {thing.name}", add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, f"{thing.name} falls apart into {tokenizer.convert_ids_to_tokens(ids)}"


def test_tokenizer_is_the_same_every_time(tokenizer: Any) -> None:
    assert words.build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_answers_name_things_in_reading_order() -> None:
    things = [BY_NAME[name] for name in ("vork", "cup", "plate")]
    assert words.describe(things) == "There is a vork, a cup and a plate."
    assert words.describe(things[:1]) == "There is a vork."
    for sentence, thing in zip(words.steps(things).split(". "), things, strict=True):
        assert sentence.startswith(f"Take the {thing.name}, {thing.steps[0]} it and {thing.steps[1]} it")


def test_world_names_are_no_words_of_its_sentences() -> None:
    """A name inside a template would tell or spoil what the image shows."""
    fixed = " ".join(
        [*words.DESCRIBE, *words.USE_IMAGE, *words.ASIDES, words.CAREFUL, *itertools.chain(*words.NOTES.values())]
    )
    assert not [thing.name for thing in THINGS if _has_word(fixed, thing.name)]
