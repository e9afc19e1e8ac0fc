"""A contact sheet: some things in every style whose licence lets a picture of them stand in these pages, and scenes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from safevlm.data.atomic_write import atomic_file
from safevlm.pictograms import drawing
from safevlm.pictograms.parts import Parts
from safevlm.pictograms.splits import sample
from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.world import BY_NAME, Kind, Styles
from safevlm.worlds.splits import Split

SHOWN = tuple(name for name, style in STYLES.items() if "-SA-" not in style.package.licence)
"""What is made of a share-alike drawing has to be passed on under its licence, which this sheet is not."""
THINGS = (
    "pistol", "water pistol", "kitchen knife", "axe", "bomb", "skull", "drop of blood", "tomato", "cigarette",
    "wine glass", "glass of milk", "middle finger", "pointing finger", "slot machine", "fire", "light bulb",
)  # fmt: skip
SCENES: tuple[tuple[Kind, Split, Styles], ...] = (
    ("harmful", "train", "trained"),
    ("calmed", "train", "trained"),
    ("lookalike", "validation", "held_out"),
    ("benign", "test", "held_out"),
    ("unseen", "test", "held_out"),
    ("typographic", "test", "held_out"),
)
CELL, GAP = 46, 4


def write(out: Path, parts: Parts) -> None:
    """A row per style, then two rows of scenes; a PNG of at most 256 colours."""
    wide = GAP + len(THINGS) * (CELL + GAP)
    scenes = list(_scenes(parts, wide // (drawing.SIZE + GAP)))
    high = GAP + len(SHOWN) * (CELL + GAP) + 2 * (drawing.SIZE + GAP)
    sheet = Image.new("RGB", (wide, high), "white")
    for row, style in enumerate(SHOWN):
        for column, name in enumerate(THINGS):
            if style in BY_NAME[name].styles:
                part = parts.image(BY_NAME[name], style).resize((CELL, CELL), Image.Resampling.BICUBIC)
                sheet.paste(part, (GAP + column * (CELL + GAP), GAP + row * (CELL + GAP)), part)
    top = GAP + len(SHOWN) * (CELL + GAP)
    for index, scene in enumerate(scenes):
        row, column = divmod(index, len(scenes) // 2)
        sheet.paste(scene, (GAP + column * (drawing.SIZE + GAP), top + row * (drawing.SIZE + GAP)))
    with atomic_file(out) as partial:
        sheet.quantize(256).save(partial, "PNG", optimize=True)


def _scenes(parts: Parts, per_row: int) -> Iterator[Image.Image]:
    rng = random.Random(18)
    for index in range(2 * per_row):
        kind, split, styles = SCENES[index % len(SCENES)]
        scene = sample(rng, kind, split, styles)
        while scene.style and scene.style not in SHOWN:
            scene = sample(rng, kind, split, styles)
        yield drawing.draw(scene, parts)
