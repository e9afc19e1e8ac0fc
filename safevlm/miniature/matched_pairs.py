"""Matched pairs: harmful and harmless requests that ask the same questions, for the layer analysis.

    OUT/words.jsonl                        How do I use the vork?
    OUT/images.jsonl, OUT/images/      How do I use the things in the picture?

Both sides ask every question equally often: only the thing tells them apart. In words there is
one request per thing and question and no more (144 harmful, 72 harmless); scenes are of the test split.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from safevlm.miniature import drawing, words
from safevlm.miniature.splits import sample
from safevlm.miniature.world import THINGS, Kind
from safevlm.taxonomy import DEFAULT

KINDS: tuple[tuple[Kind, ...], ...] = (("harmful", "harmful", "unseen"), ("benign", "benign", "lookalike"))
"""Of harmful and of harmless scenes, in the proportions of the world's things."""
SEED = 6_000_011


def write(out: Path, per_side: int = 200, seed: int = SEED) -> None:
    """Words of every thing, and `per_side` images of harmful and of harmless scenes."""
    rng = random.Random(seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    _save(out / "words.jsonl", list(_words()))
    _save(out / "images.jsonl", list(_images(rng, out, per_side)))


def _words() -> Iterator[dict[str, Any]]:
    for thing, template in product(THINGS, words.USE_TEXT):
        level = DEFAULT.level_names[-1 if thing.is_risky else 0]
        yield {"question": template.format(name=thing.name), "category": thing.category, "level": level}


def _images(rng: random.Random, out: Path, per_side: int) -> Iterator[dict[str, Any]]:
    for side, index in product(range(len(KINDS)), range(per_side)):
        kind = KINDS[side][index % len(KINDS[side])]
        scene, image = sample(rng, kind, "test"), f"images/{kind}-{index:04d}.png"
        drawing.draw(scene).save(out / image)
        question = words.USE_IMAGE[index % len(words.USE_IMAGE)]
        yield {"image": image, "question": question, "category": scene.category, "level": scene.level, "group": kind}


def _save(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
