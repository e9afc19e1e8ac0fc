"""`gallery.html`: the surest finds of every category in one file, blurred until clicked, nothing loaded from outside.

The images are read once more from the data, the shown ones only, so the scan keeps no thumbnails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.analysis.audit.images import content
from safevlm.analysis.audit.merge import Shown
from safevlm.analysis.audit.plan import PlacedItem, ShardPlan
from safevlm.data.data_uris import thumbnail_uri
from safevlm.data.images import decode_image

GALLERY = "gallery.html"
WIDEST = 200
"""Pixels of a thumbnail's longer side: about 8 kB each."""
TEMPLATE = Path(__file__).with_name("gallery.html.j2")


@dataclass(frozen=True)
class FindCard:
    """One image of the gallery."""

    path: str
    level: str
    probability: float
    image: str
    """A data URI; empty when the image cannot be read any more."""


def cards(plan: ShardPlan, shown: Mapping[str, Sequence[Shown]], names: Sequence[str]) -> dict[str, list[FindCard]]:
    """Category → its cards, the surest first, in the taxonomy's order."""
    wanted = {one.index for found in shown.values() for one in found}
    uris = {placed.index: thumbnail(placed) for placed in plan.items_at(wanted)}
    return {
        name: [_card(one, uris.get(one.index, "")) for one in sorted(shown[name], reverse=True)]
        for name in names
        if shown.get(name)
    }


def page(found: Mapping[str, Sequence[FindCard]], summary: Mapping[str, Any]) -> str:
    """The whole page. ImportError names the extra."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("the gallery needs jinja2: pip install -e '.[analysis]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(categories=found, summary=summary)


def thumbnail(placed: PlacedItem) -> str:
    """The image as a data URI; empty when it is gone or has changed since the scan."""
    try:
        return thumbnail_uri(decode_image(content(placed.item), placed.item.path), WIDEST)
    except (ValueError, OSError):
        return ""


def _card(one: Shown, uri: str) -> FindCard:
    return FindCard(one.path, one.level, one.probability, uri)
