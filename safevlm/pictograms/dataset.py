"""The pictograms' data, on disk in the formats of the miniature's: training records, two evaluation suites, PNGs.

OUT/train.jsonl, OUT/train/*.png                           trained styles, no unseen class, shapes of training
OUT/validation/eval.jsonl, OUT/validation/eval/*.png       for every choice; a suite too
OUT/eval.jsonl, OUT/eval/*.png                             the test, asked last
OUT/LICENCES.md                                            credit for the drawings, of which these images are made

No scene of one is a near-copy of a scene of another (`splits`). A group in a held-out style is in the style of its own
split; half of the questions have a shape that no training shows.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.pictograms import drawing, words
from safevlm.pictograms.parts import CREDITS, Parts, credits
from safevlm.pictograms.splits import sample
from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.words import Shapes
from safevlm.pictograms.world import HARMLESS, RISKY, Kind, Pictogram, PictogramScene, Styles, truth
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.worlds.splits import Split
from safevlm.worlds.suite_files import save, training_row, turns

Row = dict[str, Any]


@dataclass(frozen=True)
class GroupScenes:
    """Which scenes an evaluation group has, the kinds in turn."""

    kinds: tuple[Kind, ...]
    styles: Styles = "held_out"


GROUPS = {
    "harmful_seen": GroupScenes(("harmful",)),
    "harmful_unseen": GroupScenes(("unseen",)),
    "harmful_known_style": GroupScenes(("harmful",), "trained"),
    "typographic": GroupScenes(("typographic",)),
    "typographic_unseen": GroupScenes(("unseen_word",)),
    "benign": GroupScenes(("benign",)),
    "benign_known_style": GroupScenes(("benign",), "trained"),
    "lookalike": GroupScenes(("lookalike", "calmed", "benign_word")),
}
"""Evaluation groups in images; `harmful_text` and `benign_text` have none."""
RISKY_TRAINING: tuple[Kind, ...] = ("harmful", "harmful", "harmful", "typographic")
CLEAN_TRAINING: tuple[Kind, ...] = ("benign", "lookalike", "calmed", "benign_word")
VALIDATION = "validation"


@dataclass(frozen=True)
class PictogramDataConfig:
    """How much data, and the seed of each set."""

    risky: int = 2_200
    clean: int = 2_600
    per_group: int = 300
    """Of the test."""
    validation_per_group: int = 100
    train_seed: int = 1_000_003
    validation_seed: int = 7_000_003
    eval_seed: int = 2_000_003


def write(out: Path, parts: Parts, config: PictogramDataConfig) -> None:
    """Writes the three sets. PartsError: a part is missing."""
    _write_training(out, parts, config)
    _write_evaluation(out / VALIDATION, parts, "validation", config.validation_per_group, config.validation_seed)
    _write_evaluation(out, parts, "test", config.per_group, config.eval_seed)
    (out / CREDITS).write_text(credits(STYLES), encoding="utf-8")
    groups = len(GROUPS) + 2
    print(
        f"{config.risky + config.clean} training records, {groups * config.validation_per_group} validation and "
        f"{groups * config.per_group} evaluation samples in {out}"
    )


def _write_training(out: Path, parts: Parts, config: PictogramDataConfig) -> None:
    rng = random.Random(config.train_seed)
    kinds = turns(RISKY_TRAINING, config.risky) + turns(CLEAN_TRAINING, config.clean)
    rng.shuffle(kinds)
    scenes = [sample(rng, kind, "train") for kind in kinds]
    rows = [_training_row(rng, scene, f"train/{index:05d}.png") for index, scene in enumerate(scenes)]
    save(out, "train", list(zip(scenes, rows, strict=True)), functools.partial(drawing.draw, parts=parts))


def _training_row(rng: random.Random, scene: PictogramScene, image: str) -> Row:
    describes = rng.random() < 0.4
    question = words.shape(rng, words.DESCRIBE if describes else words.USE_IMAGE, "train")
    return training_row(image, scene.category, scene.level, question, _safe_reply(scene, describes))


def _safe_reply(scene: PictogramScene, describes: bool) -> str:
    if scene.category != CLEAN:
        return words.safe_answer(scene.level, scene.category)
    return words.describe(scene.things) if describes else words.steps(scene.things[0])


def _write_evaluation(out: Path, parts: Parts, split: Split, per_group: int, seed: int) -> None:
    """A group's scenes hang on the seed and on nothing that another group has."""
    pairs: list[tuple[PictogramScene | None, Row]] = []
    for group, drawn in GROUPS.items():
        rng = random.Random(f"{seed} {group}")
        for index, kind in enumerate(turns(drawn.kinds, per_group)):
            scene = sample(rng, kind, split, drawn.styles)
            pairs.append((scene, _image_row(rng, scene, split, group, index)))
    for group, rows in (("harmful_text", _harmful_texts), ("benign_text", _benign_texts)):
        pairs += [(None, row) for row in rows(random.Random(f"{seed} {group}"), split, per_group)]
    save(out, "eval", pairs, functools.partial(drawing.draw, parts=parts))


def _image_row(rng: random.Random, scene: PictogramScene, split: Split, group: str, index: int) -> Row:
    # a harmful request asks for help; a benign one asks for help or for a description
    describes = scene.category == CLEAN and rng.random() < 0.5
    shapes, task = (words.DESCRIBE, "describe") if describes else (words.USE_IMAGE, "use")
    row = _row(rng, group, index, scene.things, shapes, task, _shape_part(split, index))
    return {**row, "image": f"eval/{row['id']}.png", "style": scene.style}


def _harmful_texts(rng: random.Random, split: Split, count: int) -> Iterator[Row]:
    asked = [thing for thing in RISKY if thing.is_seen or thing.part == split]
    for index, thing in enumerate(turns(asked, count)):
        yield _row(rng, "harmful_text", index, [thing], words.USE_TEXT, "use", _shape_part(split, index))


def _benign_texts(rng: random.Random, split: Split, count: int) -> Iterator[Row]:
    """Help with harmless things, and what a thing is, of risky ones too: a word alone is no reason to refuse."""
    asked = [thing for thing in RISKY if thing.is_seen or thing.part == split]
    for index in range(count):
        part = _shape_part(split, index // 2)
        if index % 2:
            yield _row(rng, "benign_text", index, [rng.choice(asked)], words.ABOUT_TEXT, "about", part)
        else:
            yield _row(rng, "benign_text", index, [rng.choice(HARMLESS)], words.USE_TEXT, "use", part)


def _row(
    rng: random.Random, group: str, index: int, shown: Sequence[Pictogram], shapes: Shapes, task: str, part: Split
) -> Row:
    category, level = (CLEAN, SAFE) if task == "about" else truth(shown)
    names = [thing.name for thing in shown]
    return {
        "id": f"{group}-{index:04d}",
        "group": group,
        "image": None,
        "question": words.shape(rng, shapes, part).format(thing=words.with_article(shown[0])),
        "task": task,
        "things": names if task == "describe" else names[:1],
        "shown": names,
        "style": "",
        "shape": part,
        "category": category,
        "level": level,
    }


def _shape_part(split: Split, index: int) -> Split:
    return "train" if index % 2 else split
