"""A folder of images that a few risky ones contaminate, and the truth about each: what an audit is measured on.

    OUT/images/00/00000.png …   a thousand to a folder
    OUT/truth.jsonl               image, safe_type, safe_level, group
    OUT/public.jsonl              training records as a careless public set has them: unlabelled, and helpful throughout
    OUT/calibration/              the same, more of it risky, for `--calibration`

Some images are there twice: as the same bytes, or as a JPEG of another size. The scenes are those of one
split, and those for calibration of validation, so that none of them was trained on.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from safevlm.data.images import open_image
from safevlm.miniature import drawing, words
from safevlm.miniature.dataset import CLEAN_TRAINING, RISKY_TRAINING
from safevlm.miniature.splits import sample
from safevlm.miniature.world import Scene
from safevlm.taxonomy import DEFAULT
from safevlm.usage import UsageError
from safevlm.worlds.splits import SPLITS, Split

PER_FOLDER = 1_000
CALIBRATION_RISKY = 0.15
COPY_SIZE, COPY_QUALITY = 96, 75
"""Pixels and JPEG quality of a copy that is not the same file."""


@dataclass(frozen=True)
class ContaminationConfig:
    """How many images, and how many of them are risky or copies."""

    n: int = 20_000
    risky: float = 0.02
    """Share of risky images."""
    copies: float = 0.01
    """Share of images that are copies of an earlier one; half are the same bytes."""
    calibration: int = 4_000
    """Labelled images apart from the others. Most are clean: where few images are risky, what matters most is how
    often a clean one is called risky."""
    seed: int = 3_000_017
    split: str = "test"
    """Whose scenes: of test to measure on them; of validation to train on them and measure elsewhere."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"--split {self.split}: no such split; one of {list(SPLITS)}")


def write(out: Path, config: ContaminationConfig) -> None:
    """Draws the images and the calibration set, and writes the truth beside each."""
    rng = random.Random(config.seed)
    made = list(rows(rng, config.n, config.risky, config.copies, cast(Split, config.split)))
    _write(out, "images", made)
    _write(out / "calibration", "images", list(rows(rng, config.calibration, CALIBRATION_RISKY, 0.0, "validation")))
    records = [_public(rng, row["scene"], index) for index, row in enumerate(made) if "scene" in row]
    _save(out / "public.jsonl", records)
    print(f"{config.n} images and {config.calibration} for calibration in {out}")


def rows(rng: random.Random, count: int, risky: float, copies: float, split: Split) -> Iterator[dict[str, Any]]:
    """What each image is; exactly the wanted shares, at random places."""
    kinds = ["risky"] * round(count * risky) + ["copy"] * round(count * copies)
    kinds += ["clean"] * (count - len(kinds))
    rng.shuffle(kinds)
    first = next((at for at, kind in enumerate(kinds) if kind != "copy"), 0)
    kinds[0], kinds[first] = kinds[first], kinds[0]  # a copy needs something before it
    for index, kind in enumerate(kinds):
        if kind == "copy":
            yield {"copy_of": rng.randrange(index), "is_same_file": rng.random() < 0.5}
        else:
            yield {"scene": sample(rng, rng.choice(RISKY_TRAINING if kind == "risky" else CLEAN_TRAINING), split)}


def _write(out: Path, folder: str, rows: list[dict[str, Any]]) -> None:
    truths: list[dict[str, Any]] = []
    for index, row in enumerate(tqdm(rows, f"drawing {out.name}")):
        stem = _stem(folder, index)
        (out / stem).parent.mkdir(parents=True, exist_ok=True)
        truths.append(_copy(out, stem, row, truths) if "copy_of" in row else _draw(out, stem, row))
    _save(out / "truth.jsonl", truths)


def _public(rng: random.Random, scene: Scene, index: int) -> dict[str, Any]:
    """A record that helps, whatever its image shows."""
    describes = rng.random() < 0.4
    question = rng.choice(words.DESCRIBE if describes else words.USE_IMAGE)
    answer = words.describe(scene.things) if describes else words.steps(scene.things)
    return {
        "id": f"{index:05d}",
        "image": f"{_stem('images', index)}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def _stem(folder: str, index: int) -> str:
    return f"{folder}/{index // PER_FOLDER:02d}/{index:05d}"


def _save(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _draw(out: Path, stem: str, row: dict[str, Any]) -> dict[str, Any]:
    scene, image = row["scene"], f"{stem}.png"
    drawing.draw(scene).save(out / image)
    return {
        "image": image,
        "safe_type": DEFAULT.category_id(scene.category),
        "safe_level": DEFAULT.level_id(scene.level),
        "group": image,
    }


def _copy(out: Path, stem: str, row: dict[str, Any], truths: list[dict[str, Any]]) -> dict[str, Any]:
    truth = truths[row["copy_of"]]
    source = out / truth["image"]
    image = f"{stem}{source.suffix if row['is_same_file'] else '.jpg'}"
    if row["is_same_file"]:
        shutil.copyfile(source, out / image)
    else:
        small = open_image(source).resize((COPY_SIZE, COPY_SIZE), Image.Resampling.BICUBIC)
        small.save(out / image, quality=COPY_QUALITY)
    return {**truth, "image": image}
