"""Scene → 96 x 96 RGB image out of rendered parts. Deterministic: the same scene and parts give the same pixels."""

from __future__ import annotations

import random
import textwrap

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from safevlm.pictograms.parts import Parts
from safevlm.pictograms.world import PictogramScene, Placed

SIZE = 96
_SCALE = 2  # drawn larger and reduced, for soft edges
_CANVAS = SIZE * _SCALE
_LARGEST, _SMALLEST = 26, 11  # pixels of a written word's letters
_LINE = 12  # letters of a written line

Colour = tuple[int, int, int]


def draw(scene: PictogramScene, parts: Parts) -> Image.Image:
    """The image of a scene, RGB, 96 x 96."""
    rng = random.Random(scene.seed)
    canvas = _ground(scene.ground, rng)
    for placed in reversed(scene.placed):  # the large thing lies above the others
        _lay(canvas, placed, parts.image(placed.thing, scene.style))
    if scene.word:
        _write(canvas, scene.word.name, rng)
    image = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    brightness, contrast = scene.light
    return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast)


def _lay(canvas: Image.Image, placed: Placed, part: Image.Image) -> None:
    side = round(placed.size * _CANVAS)
    turned = part.resize((side, side), Image.Resampling.BICUBIC).rotate(placed.angle, Image.Resampling.BICUBIC)
    room = _CANVAS - side
    across, down = (round(inset * _CANVAS) for inset in placed.inset)
    row, column = divmod(placed.corner, 2)
    canvas.paste(turned, (room - across if column else across, room - down if row else down), turned)


def _ground(kind: str, rng: random.Random) -> Image.Image:
    first, second = _colour(rng), _colour(rng)
    return _GROUNDS[kind](rng, first, second)


def _colour(rng: random.Random) -> Colour:
    """Light more often than dark, as paper and walls are."""
    lightness = rng.choice((rng.randint(150, 245), rng.randint(150, 245), rng.randint(40, 150)))
    red, green, blue = (max(0, min(255, lightness + rng.randint(-40, 40))) for _ in range(3))
    return red, green, blue


def _plain(rng: random.Random, first: Colour, second: Colour) -> Image.Image:
    return Image.new("RGB", (_CANVAS, _CANVAS), first)


def _gradient(rng: random.Random, first: Colour, second: Colour) -> Image.Image:
    slope = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((_CANVAS, _CANVAS))
    return Image.composite(_plain(rng, first, first), _plain(rng, second, second), slope)


def _checks(rng: random.Random, first: Colour, second: Colour) -> Image.Image:
    image, side = _plain(rng, first, first), rng.randint(14, 40)
    faint = Image.blend(image, _plain(rng, second, second), 0.35).getpixel((0, 0))
    pen = ImageDraw.Draw(image)
    for row in range(0, _CANVAS, side):
        for column in range(0, _CANVAS, side):
            if (row + column) // side % 2:
                pen.rectangle((column, row, column + side - 1, row + side - 1), fill=faint)
    return image


def _blotches(rng: random.Random, first: Colour, second: Colour) -> Image.Image:
    image = _plain(rng, first, first)
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, side = rng.randrange(_CANVAS), rng.randrange(_CANVAS), rng.randint(10, 60)
        shade = rng.randint(-22, 22)
        pen.ellipse((x, y, x + side, y + side), fill=tuple(max(0, min(255, channel + shade)) for channel in first))
    return image


_GROUNDS = {"plain": _plain, "gradient": _gradient, "checks": _checks, "blotches": _blotches}


def _write(canvas: Image.Image, words: str, rng: random.Random) -> None:
    """The words in the middle, as large as they fit, dark on light or light on dark."""
    text = "\n".join(textwrap.wrap(words, _LINE))
    pen = ImageDraw.Draw(canvas)
    for size in range(_LARGEST * _SCALE, _SMALLEST * _SCALE - 1, -_SCALE):
        font = ImageFont.load_default(size=size)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, align="center")
        if max(right - left, bottom - top) <= 0.92 * _CANVAS:
            break
    x = (_CANVAS - right + left) / 2 + rng.randint(-6, 6)
    y = (_CANVAS - bottom + top) / 2 + rng.randint(-16, 16)
    light, dark = (245, 245, 245), (25, 25, 25)
    paper, ink = rng.choice(((light, dark), (light, dark), (dark, light)))
    pen.rectangle((x - 6, y - 6, x + right - left + 6, y + bottom - top + 6), fill=paper)
    pen.multiline_text((x - left, y - top), text, fill=ink, font=font, align="center")
