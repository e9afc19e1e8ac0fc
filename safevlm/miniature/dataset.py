"""The miniature's data, on disk in the real formats: training records in PSA-VLM's JSONL, an evaluation suite, PNGs.

OUT/train.jsonl, OUT/train/*.png                           no unseen symbol in it; labelled like PSA's data
OUT/validation/eval.jsonl, OUT/validation/eval/*.png       for every choice: thresholds, wordings, recipes; a suite too
OUT/eval.jsonl, OUT/eval/*.png                             the test, asked last; both have seven groups

No scene of one is a near-copy of a scene of another (`splits`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.miniature import drawing, words
from safevlm.miniature.splits import sample
from safevlm.miniature.world import RISKY, Kind, Scene
from safevlm.taxonomy import CLEAN, DEFAULT
from safevlm.worlds.splits import Split
from safevlm.worlds.suite_files import save, training_row, turns

GROUPS: dict[str, tuple[Kind, ...]] = {
    "harmful_seen": ("harmful",),
    "harmful_unseen": ("unseen",),
    "typographic": ("typographic",),
    "typographic_unseen": ("unseen_word",),
    "benign": ("benign",),
    "lookalike": ("lookalike", "benign_word"),
}
"""Evaluation groups in images, and the scenes they are drawn from in turn; `harmful_text` has no images."""
RISKY_TRAINING: tuple[Kind, ...] = ("harmful", "harmful", "harmful", "typographic")
CLEAN_TRAINING: tuple[Kind, ...] = ("benign", "lookalike", "benign_word")


VALIDATION = "validation"


@dataclass(frozen=True)
class MiniatureDataConfig:
    """How much data, and the seed of each set."""

    risky: int = 2_200
    clean: int = 2_600
    per_group: int = 300
    """Of the test."""
    validation_per_group: int = 100
    train_seed: int = 1_000_003
    validation_seed: int = 7_000_003
    eval_seed: int = 2_000_003


def write(out: Path, config: MiniatureDataConfig) -> None:
    """Writes the three sets."""
    _write_training(out, config)
    _write_evaluation(out / VALIDATION, "validation", config.validation_per_group, config.validation_seed)
    _write_evaluation(out, "test", config.per_group, config.eval_seed)
    groups = len(GROUPS) + 1
    print(
        f"{config.risky + config.clean} training records, {groups * config.validation_per_group} validation and "
        f"{groups * config.per_group} evaluation samples in {out}"
    )


def _write_training(out: Path, config: MiniatureDataConfig) -> None:
    rng = random.Random(config.train_seed)
    kinds = turns(RISKY_TRAINING, config.risky) + turns(CLEAN_TRAINING, config.clean)
    rng.shuffle(kinds)
    scenes = [sample(rng, kind, "train") for kind in kinds]
    rows = [_training_row(rng, scene, f"train/{index:05d}.png") for index, scene in enumerate(scenes)]
    save(out, "train", list(zip(scenes, rows, strict=True)), drawing.draw)


def _training_row(rng: random.Random, scene: Scene, image: str) -> dict[str, Any]:
    describes = rng.random() < 0.4
    question = rng.choice(words.DESCRIBE if describes else words.USE_IMAGE)
    return training_row(
        image,
        DEFAULT.category_id(scene.category),
        DEFAULT.level_id(scene.level),
        question,
        _safe_reply(scene, describes),
    )


def _safe_reply(scene: Scene, describes: bool) -> str:
    if scene.category != CLEAN:
        return words.safe_answer(scene.level, scene.category)
    return words.describe(scene.things) if describes else words.steps(scene.things)


def _write_evaluation(out: Path, split: Split, per_group: int, seed: int) -> None:
    """A group's scenes hang on the seed and on nothing that another group has."""
    pairs = []
    for group, kinds in GROUPS.items():
        rng = random.Random(f"{seed} {group}")
        for index, kind in enumerate(turns(kinds, per_group)):
            scene = sample(rng, kind, split)
            pairs.append((scene, _image_row(rng, scene, group, f"{group}-{index:04d}")))
    text_rows = _text_rows(random.Random(f"{seed} text"), per_group)
    save(out, "eval", [*pairs, *((None, row) for row in text_rows)], drawing.draw)


def _image_row(rng: random.Random, scene: Scene, group: str, name: str) -> dict[str, Any]:
    # a harmful request asks for help; a benign one asks for help or for a description
    describes = scene.category == CLEAN and rng.random() < 0.5
    return {
        "id": name,
        "group": group,
        "image": f"eval/{name}.png",
        "question": rng.choice(words.DESCRIBE if describes else words.USE_IMAGE),
        "task": "describe" if describes else "use",
        "things": [thing.name for thing in scene.things],
        "category": scene.category,
        "level": scene.level,
    }


def _text_rows(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for index in range(count):
        thing = RISKY[index % len(RISKY)]
        yield {
            "id": f"harmful_text-{index:04d}",
            "group": "harmful_text",
            "image": None,
            "question": rng.choice(words.USE_TEXT).format(name=thing.name),
            "task": "use",
            "things": [thing.name],
            "category": thing.category,
            "level": DEFAULT.level_names[-1],
        }
