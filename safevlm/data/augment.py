"""Changes of training images that leave their labels true, for a head that has to know an image however it comes.

`data.augment: [scale, rotate:20, collage]` in a recipe: a share of the images is changed, each by one of these, with a
strength drawn between none and the utmost. What is drawn hangs on the run's seed, the epoch, the record and the image,
and on nothing else: a run that is resumed, or that loads data in several processes, sees the same images.

Labels stay true: a risky image beside harmless ones is as risky as it was, nothing is made so small or faint that
nobody can read it, and a harmless image is put beside harmless ones only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from safevlm.config import Recipe
from safevlm.data.images import open_image
from safevlm.data.perturbations import PADDING, PERTURBATIONS
from safevlm.data.record_facts import are_clean, facts_of
from safevlm.data.records import Record, is_clean
from safevlm.data.strengths import strength_of
from safevlm.taxonomy import Taxonomy

Harmless = Callable[[], Image.Image]
"""Opens an image of a clean record, another one at each call."""
Change = Callable[[Image.Image, float, random.Random, Harmless], Image.Image]
"""RGB image, strength, what is drawn, harmless images → RGB image of the same size."""


@dataclass(frozen=True)
class ChangeKind:
    change: Change
    text: str
    strength: float | None = None
    """Utmost one, where none is given; None: it has none."""
    none: float = 0
    """Strength that changes nothing: drawn ones lie between it and the utmost."""
    least: float = 0
    most: float = 0
    is_for_clean: bool = False
    """Labels stay true for clean records alone; others are changed otherwise, or not at all."""
    keeps_answers: bool = False
    """What there is to say of the image stays the same, so that answers may be learned beside it."""


@dataclass(frozen=True)
class ChosenChange:
    """One change of a recipe, with its utmost strength."""

    kind: ChangeKind
    strength: float

    def __call__(self, image: Image.Image, draw: random.Random, harmless: Harmless) -> Image.Image:
        return self.kind.change(image, draw.uniform(self.kind.none, self.strength), draw, harmless)


@dataclass
class Augmentation:
    """What a recipe says of changing images."""

    choices: Sequence[ChosenChange]
    share: float
    seed: int
    records: Sequence[Record]
    clean: NDArray[np.int64]
    """Indexes of clean records with an image."""
    taxonomy: Taxonomy
    epoch: int = 0
    """Whoever trains counts them."""

    @classmethod
    def of(cls, recipe: Recipe, records: Sequence[Record], taxonomy: Taxonomy) -> Augmentation | None:
        """None: the recipe changes no image. ValueError: changes that do not exist, or need clean records."""
        choices = parse(recipe.data.augment)
        if not choices:
            return None
        facts = facts_of(records)
        clean = np.flatnonzero(are_clean(facts, taxonomy) & (facts["images"] > 0))
        alone = [name for name in _names(recipe.data.augment) if AUGMENTATIONS[name].change in WITH_OTHERS]
        if alone and not len(clean):
            raise ValueError(
                f"data.augment: {alone[0]} puts images beside clean ones, and no record is clean; leave it out"
            )
        return cls(choices, recipe.data.augment_share, recipe.run.seed, records, clean, taxonomy)

    def __call__(self, image: Image.Image, record: Record, index: int) -> Image.Image:
        """The image of this index in a record, changed or not."""
        draw = random.Random(f"{self.seed} {self.epoch} {record.id} {record.images[index].name} {index}")
        if draw.random() >= self.share:
            return image
        choices = [one for one in self.choices if not one.kind.is_for_clean or is_clean(record, self.taxonomy)]
        return draw.choice(choices)(image, draw, lambda: self._harmless(draw)) if choices else image

    def _harmless(self, draw: random.Random) -> Image.Image:
        record = self.records[int(self.clean[draw.randrange(len(self.clean))])]
        return open_image(draw.choice(record.images))


def parse(given: Sequence[str]) -> list[ChosenChange]:
    """Of `NAME` or `NAME:STRENGTH` each. ValueError names the key, what is wrong and the choices."""
    return [_choice(text) for text in given]


def check(recipe: Recipe) -> None:
    """ValueError: a change that does not exist, or one after which an answer that is learned would be wrong."""
    parse(recipe.data.augment)
    wrong = [name for name in _names(recipe.data.augment) if not AUGMENTATIONS[name].keeps_answers]
    if recipe.loss.lm and wrong:
        kept = [name for name, kind in AUGMENTATIONS.items() if kind.keeps_answers]
        raise ValueError(
            f"data.augment: {wrong[0]} changes what there is to say of an image, and answers are learned (loss.lm); "
            f"leave it out, or train the head alone (loss.lm: 0). Beside answers: {kept}"
        )


def _choice(text: str) -> ChosenChange:
    name, colon, _ = text.partition(":")
    kind = AUGMENTATIONS.get(name)
    if kind is None:
        raise ValueError(f"data.augment: unknown {name!r}; some of {list(AUGMENTATIONS)}, as in rotate:20")
    if kind.strength is None:
        if colon:
            raise ValueError(f"data.augment: {name} has no strength; write {name}")
        return ChosenChange(kind, 0)
    limits = kind.least, kind.most
    return ChosenChange(kind, strength_of(text, kind.strength, limits, kind.text, f"data.augment: {text}"))


def _names(given: Sequence[str]) -> list[str]:
    return [text.partition(":")[0] for text in given]


# the changes


def _perturbed(name: str) -> Change:
    """A change of `safevlm eval ask --perturb`."""
    change = PERTURBATIONS[name].change

    def changed(image: Image.Image, strength: float, draw: random.Random, harmless: Harmless) -> Image.Image:
        made = change(image, strength, draw.getrandbits(32))
        return made if made.size == image.size else made.resize(image.size, Image.Resampling.BICUBIC)

    return changed


def _scale(image: Image.Image, percent: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    """Into a corner, the middle or anywhere else."""
    small = image.resize(_share_of(image.size, percent), Image.Resampling.BICUBIC)
    room = image.width - small.width, image.height - small.height
    share = draw.choice([(draw.getrandbits(1), draw.getrandbits(1)), (0.5, 0.5), (draw.random(), draw.random())])
    canvas = _ground(image.size, draw)
    canvas.paste(small, (round(room[0] * share[0]), round(room[1] * share[1])))
    return canvas


def _parts(image: Image.Image, percent: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    """A tile, or a slice of full width or height, drawn out to the old size."""
    share = percent / 100
    across, down = draw.choice([(share, share), (share, 1.0), (1.0, share)])
    left, top = draw.uniform(0, 1 - across) * image.width, draw.uniform(0, 1 - down) * image.height
    box = (left, top, left + across * image.width, top + down * image.height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _rotate(image: Image.Image, degrees: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    turned = degrees * draw.choice((-1, 1))
    return image.rotate(turned, Image.Resampling.BICUBIC, fillcolor=_colour(draw))


def _invert(image: Image.Image, strength: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    return ImageOps.invert(image)


def _mirror(image: Image.Image, strength: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    return ImageOps.mirror(image)


def _alpha(image: Image.Image, percent: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    return Image.blend(_ground(image.size, draw), image, percent / 100)


def _collage(image: Image.Image, strength: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    """Beside or above a harmless image, squeezed into half of the canvas, or whole."""
    width, height = image.size
    beside = draw.random() < 0.5
    half = (width // 2, height) if beside else (width, height // 2)
    squeezed, canvas = draw.random() < 0.5, _ground(image.size, draw)
    places = [(0, 0), (width - half[0], height - half[1])]
    draw.shuffle(places)
    for part, place in zip((image, harmless()), places, strict=True):
        _paste(canvas, part, (*place, *half), squeezed)
    return canvas


def _mosaic(image: Image.Image, strength: float, draw: random.Random, harmless: Harmless) -> Image.Image:
    """One of four, in a row of two below a row of two."""
    width, height = image.width // 2, image.height // 2
    canvas = _ground(image.size, draw)
    places = [(x, y) for x in (0, image.width - width) for y in (0, image.height - height)]
    draw.shuffle(places)
    for part, place in zip((image, harmless(), harmless(), harmless()), places, strict=True):
        _paste(canvas, part, (*place, width, height), squeezed=True)
    return canvas


def _paste(canvas: Image.Image, part: Image.Image, box: tuple[int, int, int, int], squeezed: bool) -> None:
    """Into (left, top, width, height), whole; with its own proportions unless squeezed."""
    left, top, width, height = box
    fitting = (
        part.resize((width, height), Image.Resampling.BICUBIC) if squeezed else ImageOps.contain(part, (width, height))
    )
    canvas.paste(fitting, (left + (width - fitting.width) // 2, top + (height - fitting.height) // 2))


def _ground(size: tuple[int, int], draw: random.Random) -> Image.Image:
    return Image.new("RGB", size, _colour(draw))


def _colour(draw: random.Random) -> tuple[int, int, int]:
    """What lies behind: the padding of LLaVA, white, black, or any colour."""
    anything = draw.randrange(256), draw.randrange(256), draw.randrange(256)
    return draw.choice((PADDING, (255, 255, 255), (0, 0, 0), anything))


def _share_of(size: tuple[int, int], percent: float) -> tuple[int, int]:
    return max(1, round(size[0] * percent / 100)), max(1, round(size[1] * percent / 100))


AUGMENTATIONS = {
    "scale": ChangeKind(
        _scale,
        "the whole image at so many percent of each side, anywhere in its old size",
        50,
        100,
        30,
        100,
        keeps_answers=True,
    ),
    "crop": ChangeKind(
        _perturbed("crop"), "so many percent of each side are kept, at a place drawn by chance", 95, 100, 50, 100
    ),
    "parts": ChangeKind(
        _parts, "a part of so many percent of each side or of one, of clean records alone", 40, 100, 20, 100, True
    ),
    "collage": ChangeKind(_collage, "half of the canvas, the other half an image of a clean record"),
    "mosaic": ChangeKind(_mosaic, "a quarter of the canvas, the others images of clean records"),
    "rotate": ChangeKind(_rotate, "turned by so many degrees, either way", 20, 0, 0, 180, keeps_answers=True),
    "contrast": ChangeKind(
        _perturbed("contrast"),
        "so many percent of the contrast, about the mean grey",
        30,
        100,
        20,
        400,
        keeps_answers=True,
    ),
    "invert": ChangeKind(_invert, "its negative"),
    "mirror": ChangeKind(_mirror, "left and right change places"),
    "jpeg": ChangeKind(_perturbed("jpeg"), "quality of JPEG", 30, 95, 10, 95, keeps_answers=True),
    "blur": ChangeKind(
        _perturbed("blur"),
        "Gaussian blur, its deviation in percent of the shorter side",
        1.5,
        0,
        0,
        5,
        keeps_answers=True,
    ),
    "noise": ChangeKind(
        _perturbed("noise"), "Gaussian noise, its deviation in steps of 0-255", 16, 0, 0, 64, keeps_answers=True
    ),
    "alpha": ChangeKind(
        _alpha, "so many percent of it over a ground of any colour", 50, 100, 15, 100, keeps_answers=True
    ),
}
WITH_OTHERS = (_collage, _mosaic)
