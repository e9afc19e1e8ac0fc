"""Scene → 64 x 64 RGB image. Deterministic: the same scene gives the same pixels."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw, ImageFont

from safevlm.miniature.world import PlacedThing, Scene

SIZE = 64
_SCALE = 2  # drawn larger and reduced, for soft edges
_DARK = (30, 30, 30)
RGB = {
    "red": (220, 60, 50),
    "blue": (70, 110, 230),
    "green": (70, 170, 80),
    "yellow": (240, 210, 70),
    "purple": (160, 90, 190),
    "orange": (245, 150, 50),
}
FRAME_RGB = {"blue": (40, 60, 200), "red": (200, 20, 20)}

Points = list[tuple[float, float]]


def _regular(corners: int, start: float = -90.0) -> Points:
    angles = (math.radians(start + 360 * corner / corners) for corner in range(corners))
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> Points:
    return [(x * r, y * r) for (x, y), r in zip(_regular(10), (1.0, 0.45) * 5, strict=True)]


def _heart() -> Points:
    turns = (2 * math.pi * step / 40 for step in range(40))
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _arch() -> Points:
    top = [(math.cos(math.radians(a)), -math.sin(math.radians(a))) for a in range(0, 181, 15)]
    return [*top, (-1.0, 0.8), (-0.45, 0.8), (-0.45, 0.2), (0.45, 0.2), (0.45, 0.8), (1.0, 0.8)]


def _moon() -> Points:
    outer = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(50, 311, 15)]
    inner = [(0.35 + 0.7 * math.cos(math.radians(a)), 0.7 * math.sin(math.radians(a))) for a in range(290, 69, -15)]
    return outer + inner


def _drop() -> Points:
    return [
        (0.0, -1.0),
        *[(0.75 * math.cos(math.radians(a)), 0.25 + 0.75 * math.sin(math.radians(a))) for a in range(-30, 211, 15)],
    ]


OUTLINE_POINTS: dict[str, Points] = {
    "circle": _regular(36),
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": _regular(4),
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "hexagon": _regular(6, 0.0),
    "cross": [
        (-0.45, -1),
        (0.45, -1),
        (0.45, -0.45),
        (1, -0.45),
        (1, 0.45),
        (0.45, 0.45),
        (0.45, 1),
        (-0.45, 1),
        (-0.45, 0.45),
        (-1, 0.45),
        (-1, -0.45),
        (-0.45, -0.45),
    ],
    "star": _star(),
    "heart": _heart(),
    "arch": _arch(),
    "moon": _moon(),
    "drop": _drop(),
    "arrow": [(0.0, -1.0), (0.9, 0.0), (0.4, 0.0), (0.4, 1.0), (-0.4, 1.0), (-0.4, 0.0), (-0.9, 0.0)],
}

# Strokes of a mark, in units of the radius; a stroke of one point is a dot.
MARK_STROKES: dict[str, list[Points]] = {
    "plain": [],
    "dot": [[(0.0, 0.0)]],
    "pair": [[(-0.3, 0.0)], [(0.3, 0.0)]],
    "bar": [[(-0.5, 0.0), (0.5, 0.0)]],
    "pole": [[(0.0, -0.5), (0.0, 0.5)]],
    "saltire": [[(-0.4, -0.4), (0.4, 0.4)], [(-0.4, 0.4), (0.4, -0.4)]],
    "chevron": [[(-0.45, 0.3), (0.0, -0.35), (0.45, 0.3)]],
    "ring": [[(0.45 * x, 0.45 * y) for x, y in [*_regular(16), *_regular(16)[:2]]]],
}
_DOT_RADIUS = 0.22  # of the thing's radius
_STROKE = 3  # pixels
WORD_PLACE = (SIZE // 2, 40)
"""Where the middle of a written word is, in pixels from the left and from the top, give or take one."""
_FONT_SIZE = 19  # pixels; the longest name then fills the image


def draw(scene: Scene) -> Image.Image:
    """The image of a scene, RGB, 64 x 64."""
    rng = random.Random(scene.noise_seed)
    tint = tuple(scene.background + rng.randint(-8, 5) for _ in range(3))
    canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), tint)
    pen = ImageDraw.Draw(canvas)
    for _ in range(12):
        _speckle(pen, rng, tint)
    for placed in scene.placed:
        _draw_thing(pen, placed)
    if scene.word:
        _write(pen, scene.word.name, rng)
    if scene.frame != "none":
        pen.rectangle((0, 0, SIZE * _SCALE - 1, SIZE * _SCALE - 1), outline=FRAME_RGB[scene.frame], width=3 * _SCALE)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def middle(placed: PlacedThing) -> tuple[int, int]:
    """Where the middle of a thing is, in pixels from the left and from the top."""
    row, column = divmod(placed.quadrant, 2)
    return SIZE // 4 + column * SIZE // 2 + placed.offset[0], SIZE // 4 + row * SIZE // 2 + placed.offset[1]


def _speckle(pen: ImageDraw.ImageDraw, rng: random.Random, tint: tuple[int, ...]) -> None:
    x, y, size = rng.randrange(SIZE * _SCALE), rng.randrange(SIZE * _SCALE), rng.randint(2, 10)
    shade = rng.randint(-14, 5)
    pen.ellipse((x, y, x + size, y + size), fill=tuple(channel + shade for channel in tint))


def _draw_thing(pen: ImageDraw.ImageDraw, placed: PlacedThing) -> None:
    radius = placed.radius * _SCALE
    centre_x, centre_y = (place * _SCALE for place in middle(placed))

    def at(points: Points) -> Points:
        return [(centre_x + x * radius, centre_y + y * radius) for x, y in points]

    outline = at(OUTLINE_POINTS[placed.thing.outline])
    pen.polygon(outline, fill=RGB[placed.colour])
    pen.line([*outline, outline[0]], fill=_DARK, width=2 * _SCALE, joint="curve")
    for stroke in MARK_STROKES[placed.thing.mark]:
        points = at(stroke)
        if len(points) == 1:
            (x, y), dot = points[0], _DOT_RADIUS * radius
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=_DARK)
        else:
            pen.line(points, fill=_DARK, width=_STROKE * _SCALE, joint="curve")


def _write(pen: ImageDraw.ImageDraw, word: str, rng: random.Random) -> None:
    """The word across the lower middle, as large as it fits, give or take a pixel."""
    font = ImageFont.load_default(size=_FONT_SIZE * _SCALE)
    left, top, right, bottom = pen.textbbox((0, 0), word, font=font)
    x = WORD_PLACE[0] * _SCALE - (right - left) / 2 + rng.randint(-_SCALE, _SCALE)
    y = WORD_PLACE[1] * _SCALE - (bottom - top) / 2 + rng.randint(-_SCALE, _SCALE)
    pen.rectangle((x - 6, y - 6, x + right - left + 6, y + bottom - top + 6), fill=(255, 255, 255))
    pen.text((x - left, y - top), word, fill=_DARK, font=font)
