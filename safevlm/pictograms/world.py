"""The world of pictograms: its things, scenes of one to four of them, and what is true of each scene.

One thing is large and comes first; a question about "this" means it. The others are small, in other corners. At most
one thing is risky, and it is the large one. What stands beside it may be a sign of a context, which makes it harmless,
less serious or more so (`things.CONTEXTS`): the level is no function of the thing alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safevlm import recipes
from safevlm.pictograms.styles import STYLES, of_part
from safevlm.pictograms.things import CONTEXTS, FAMILIES, ICONS, LOOKALIKES, NEWER_RISKS, OLD_ONLY, RISKS
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy
from safevlm.worlds.splits import Split

TAXONOMY = recipes.FOLDER / "taxonomy_pictograms.yaml"
GROUNDS = ("plain", "gradient", "checks", "blotches")
CORNERS = range(4)
"""In reading order."""

Kind = Literal["benign", "lookalike", "calmed", "harmful", "unseen", "benign_word", "typographic", "unseen_word"]
"""calmed: a risky thing in a context that makes it harmless. unseen: a class that no safety training shows."""
Styles = Literal["trained", "held_out"]


@dataclass(frozen=True, eq=False)  # there is one of each
class Pictogram:
    name: str
    category: str
    kind: str
    """A noun phrase: what it is a kind of."""
    verbs: tuple[str, str]
    """Of its instructions."""
    styles: tuple[str, ...]
    """That draw it."""
    part: Split = "train"
    """Of a risky thing: `train`, or the split that asks about it as an unseen class."""

    @property
    def icon(self) -> str:
        return ICONS.get(self.name, self.name.lower().replace(" ", "-"))

    @property
    def is_risky(self) -> bool:
        return self.category != CLEAN

    @property
    def is_seen(self) -> bool:
        return self.part == "train"


@dataclass(frozen=True)
class Placed:
    """A thing in a scene; lengths are shares of the image's side."""

    thing: Pictogram
    corner: int
    size: float
    inset: tuple[float, float]
    """From the corner to the thing, across and down."""
    angle: float
    """Degrees, counter-clockwise."""


@dataclass(frozen=True)
class PictogramScene:
    style: str
    """Empty when the scene is a written word."""
    placed: tuple[Placed, ...]
    """The large one first."""
    word: Pictogram | None
    """The thing whose name is written (typographic scenes)."""
    ground: str
    light: tuple[float, float]
    """Factors of brightness and contrast."""
    seed: int
    """Of the ground's colours."""

    @property
    def things(self) -> tuple[Pictogram, ...]:
        return (self.word,) if self.word else tuple(placed.thing for placed in self.placed)

    @property
    def category(self) -> str:
        return truth(self.things)[0]

    @property
    def level(self) -> str:
        return truth(self.things)[1]


def truth(things: Sequence[Pictogram]) -> tuple[str, str]:
    """Category and level of a picture of things, the large one first; a written word is a picture of one thing."""
    main = things[0]
    if not main.is_risky:
        return CLEAN, SAFE
    context = CONTEXTS.get(context_of(things), None)
    if context is not None and main.name in context.calms:
        return CLEAN, SAFE
    names = taxonomy().level_names
    level = names.index(RISKS[main.category].level)
    if context is not None:
        level += (main.category in context.raises) - (main.category in context.lowers)
    return main.category, names[min(len(names) - 1, max(1, level))]


def context_of(things: Sequence[Pictogram]) -> str:
    """The name of the context that a thing beside the large one is a sign of; empty: there is none."""
    beside = {thing.name for thing in things[1:]}
    return next((name for name, context in CONTEXTS.items() if beside & set(context.signs)), "")


@functools.cache
def taxonomy() -> Taxonomy:
    """The categories and levels of this world."""
    return Taxonomy.from_yaml(TAXONOMY)


def _styles_of(name: str, is_newer: bool) -> tuple[str, ...]:
    wants_old = name in OLD_ONLY
    return tuple(
        style
        for style, one in STYLES.items()
        if (one.draws_newer or not is_newer) and not (wants_old and one.draws_newer)
    )


def _make_things() -> tuple[Pictogram, ...]:
    risky = [
        Pictogram(name, category, risk.kind, risk.verbs, _styles_of(name, name in NEWER_RISKS), part)
        for category, risk in RISKS.items()
        for part, names in risk.parts.items()
        for name in names
    ]
    harmless = [
        Pictogram(name, CLEAN, family.kind, family.verbs, _styles_of(name, name in family.newer))
        for family in FAMILIES
        for name in (*family.things, *family.newer)
    ]
    return tuple(risky + harmless)


THINGS = _make_things()
BY_NAME = {thing.name: thing for thing in THINGS}
RISKY = tuple(thing for thing in THINGS if thing.is_risky)
SEEN = tuple(thing for thing in RISKY if thing.is_seen)
HARMLESS = tuple(thing for thing in THINGS if not thing.is_risky)
LOOKALIKE = tuple(BY_NAME[name] for name in dict.fromkeys(name for names in LOOKALIKES.values() for name in names))
SIGNS = tuple(BY_NAME[name] for context in CONTEXTS.values() for name in context.signs)
BENIGN = tuple(thing for thing in HARMLESS if thing not in LOOKALIKE)


def unseen(split: Split) -> tuple[Pictogram, ...]:
    """The classes that no safety training shows and that a split asks about; training has none."""
    return tuple(thing for thing in RISKY if not thing.is_seen and thing.part == split)


def sample_scene(rng: random.Random, kind: Kind, split: Split, styles: Styles = "trained") -> PictogramScene:
    """A random scene of a kind with the classes and styles that a split may show; of no split yet (`splits`)."""
    if kind in _WRITTEN:
        return written(rng, rng.choice(_pool(kind, split)))
    style = rng.choice(of_part("train" if styles == "trained" else split))
    main = rng.choice(_mains(kind, split, style))
    beside = []
    if rng.random() < (1.0 if kind == "calmed" else SHARE_WITH_SIGN):
        beside.append(rng.choice(_signs_beside(main, style, is_harmless=kind in ("benign", "lookalike", "calmed"))))
    return scene_around(rng, style, main, beside)


def scene_around(
    rng: random.Random, style: str, main: Pictogram, beside: Sequence[Pictogram] = (), alone: bool = False
) -> PictogramScene:
    """A large thing, what stands beside it, and up to three small things in all; `alone`: no other ones."""
    if alone:
        return _drawn(rng, style, main, beside)
    others = [thing for thing in rng.sample(_companions(style), 4) if thing is not main]
    return _drawn(rng, style, main, [*beside, *others[: rng.randint(0, 3 - len(beside))]])


SHARE_WITH_SIGN = 0.5
"""Of scenes, harmless ones too: a sign alone tells nothing."""


def _pool(kind: Kind, split: Split) -> Sequence[Pictogram]:
    """What the large or written thing is drawn from."""
    return {
        "benign": BENIGN,
        "lookalike": LOOKALIKE,
        "calmed": [thing for thing in SEEN if any(thing.name in context.calms for context in CONTEXTS.values())],
        "harmful": SEEN,
        "unseen": unseen(split),
        "benign_word": HARMLESS,
        "typographic": SEEN,
        "unseen_word": unseen(split),
    }[kind]


_WRITTEN: tuple[Kind, ...] = ("benign_word", "typographic", "unseen_word")


@functools.cache
def _mains(kind: Kind, split: Split, style: str) -> Sequence[Pictogram]:
    return [thing for thing in _pool(kind, split) if style in thing.styles]


@functools.cache
def _signs_beside(main: Pictogram, style: str, is_harmless: bool) -> Sequence[Pictogram]:
    """Signs of contexts in which a large thing is harmless, or is not."""
    signs = [thing for thing in SIGNS if style in thing.styles and thing is not main]
    return [sign for sign in signs if (truth([main, sign])[0] == CLEAN) == is_harmless]


@functools.cache
def _companions(style: str) -> Sequence[Pictogram]:
    """Harmless things that are no sign of anything."""
    return [thing for thing in HARMLESS if style in thing.styles and thing not in SIGNS]


def _drawn(rng: random.Random, style: str, main: Pictogram, beside: Sequence[Pictogram]) -> PictogramScene:
    first, *rest = rng.sample(CORNERS, 1 + len(beside))
    large = rng.uniform(0.5, 0.58) if beside else rng.uniform(0.55, 0.95)
    room = 0.04 if beside else 1 - large
    placed = [_place(rng, main, first, large, room)]
    placed += [
        _place(rng, thing, corner, rng.uniform(0.38, 0.44), 0.02) for thing, corner in zip(beside, rest, strict=True)
    ]
    return PictogramScene(style, tuple(placed), None, rng.choice(GROUNDS), _light(rng), rng.randrange(2**31))


def _place(rng: random.Random, thing: Pictogram, corner: int, size: float, room: float) -> Placed:
    inset = (rng.uniform(0, room), rng.uniform(0, room))
    return Placed(thing, corner, size, inset, rng.uniform(-15, 15))


def written(rng: random.Random, word: Pictogram) -> PictogramScene:
    """The thing's name on a random ground."""
    return PictogramScene("", (), word, rng.choice(GROUNDS), _light(rng), rng.randrange(2**31))


def _light(rng: random.Random) -> tuple[float, float]:
    return rng.uniform(0.75, 1.15), rng.uniform(0.75, 1.1)
