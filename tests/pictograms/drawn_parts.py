"""Parts without a network: a coloured square for each thing in each style, as `safevlm pictograms parts` lays them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image

from safevlm.pictograms.parts import FILE, Parts
from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.world import THINGS


def write_parts(folder: Path) -> Parts:
    """8 pixels wide, transparent at the rim."""
    for style in STYLES:
        (folder / style).mkdir(parents=True)
        for thing in THINGS:
            if style in thing.styles:
                colour = tuple(hashlib.sha256(f"{style} {thing.name}".encode()).digest()[:3])
                part = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
                part.paste((*colour, 255), (1, 1, 7, 7))
                part.save(folder / style / f"{thing.icon}.png")
    (folder / FILE).write_text(json.dumps({"side": 8}))
    return Parts(folder)
