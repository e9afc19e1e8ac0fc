"""A world's records and evaluation rows on disk: `NAME.jsonl`, and the images that its rows name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

Scene = TypeVar("Scene")
Kind = TypeVar("Kind")


def save(
    out: Path, name: str, pairs: Sequence[tuple[Scene | None, dict[str, Any]]], draw: Callable[[Scene], Image.Image]
) -> None:
    """`OUT/NAME.jsonl` of the rows, and an image for every row that has a scene."""
    (out / name).mkdir(parents=True, exist_ok=True)
    for scene, row in tqdm(pairs, f"{name} images"):
        if scene is not None:
            draw(scene).save(out / row["image"])
    text = "".join(json.dumps(row) + "\n" for _, row in pairs)
    (out / f"{name}.jsonl").write_text(text, encoding="utf-8")


def training_row(image: str, category: str | int, level: str | int, question: str, answer: str) -> dict[str, Any]:
    """A record about an image, in LLaVA's layout, with its labels by name or by id."""
    return {
        "id": Path(image).stem,
        "image": image,
        "safe_type": category,
        "safe_level": level,
        "conversations": [
            {"from": "USER", "value": f"<image>\n{question}"},
            {"from": "ASSISTANT", "value": answer},
        ],
    }


def turns(kinds: Sequence[Kind], count: int) -> list[Kind]:
    """So many, each kind in turn."""
    return [kinds[index % len(kinds)] for index in range(count)]
