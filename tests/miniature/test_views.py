"""Views of scenes: what a view says about places is where the pixels went."""

from __future__ import annotations

import random

import pytest
import torch

from safevlm.miniature import drawing
from safevlm.miniature.sight import ReadOut, Truth
from safevlm.miniature.world import COLOURS, Scene, sample_scene
from safevlm.worlds.views import Camera

SIDE = 64


def camera(seed: int = 1) -> Camera:
    return Camera(seed, [0.5] * 3, [0.5] * 3)


def dots(x: float, y: float, count: int) -> torch.Tensor:
    """A light spot on a dark ground at (x, y), -1 to 1."""
    places = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    spot = 255 * torch.exp(-((places[None] - x) ** 2 + (places[:, None] - y) ** 2) / 0.01)
    return spot.expand(count, 3, -1, -1).contiguous()


def brightest(pixels: torch.Tensor) -> torch.Tensor:
    """(b, 2): the middle of what is above its surroundings."""
    places = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    weight = (pixels.mean(1) - pixels.mean(1).flatten(1).median(1).values[:, None, None]).clamp(min=0) ** 4
    total = weight.sum((1, 2))
    return torch.stack([(weight.sum(1) * places).sum(1), (weight.sum(2) * places).sum(1)], 1) / total[:, None]


def test_a_view_tells_where_the_pixels_of_a_place_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Camera, "_ground", lambda self, count: torch.zeros(count, 3, 1, 1))
    point = (0.3, -0.2)
    pixels, view = camera().take(dots(*point, 60))
    told = view.places(torch.tensor(point).expand(60, 1, 2))[:, 0]
    off = (brightest(pixels) - told).abs().amax(1)
    assert off.median() < 2 / SIDE and (off < 4 / SIDE).float().mean() > 0.9
    assert told.std(0).min() > 0.02, "views differ"


def test_without_strength_every_pixel_keeps_its_place() -> None:
    _, view = camera().take(dots(0.0, 0.0, 8), strength=0.0)
    points = torch.rand(8, 3, 2)
    assert torch.allclose(view.places(points), points)


def test_views_hang_on_the_seed_alone() -> None:
    images = dots(0.2, 0.2, 4)
    first, again, other = (camera(seed).take(images)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_truth_knows_where_a_thing_is_drawn() -> None:
    rng = random.Random(2)
    scenes = [scene for scene in (sample_scene(rng, "benign") for _ in range(40)) if len(scene.things) == 1]
    truth = Truth(scenes)
    for row, scene in enumerate(scenes):
        left, top, right, bottom = _box(scene)
        middle = (truth.middle[row, 0] + 1) * SIDE / 2
        assert abs(middle[0] - (left + right) / 2) <= 6 and abs(middle[1] - (top + bottom) / 2) <= 6, scene


def _box(scene: Scene) -> tuple[int, int, int, int]:
    """Of the pixels in the thing's colour."""
    image, colour = drawing.draw(scene).load(), drawing.RGB[scene.placed[0].colour]
    inside = [
        (x, y)
        for x in range(5, SIDE - 5)
        for y in range(5, SIDE - 5)
        if sum(abs(a - b) for a, b in zip(image[x, y], colour, strict=True)) < 30
    ]
    xs, ys = zip(*inside, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


@pytest.mark.parametrize("kind", ["benign", "benign_word", "any"])
def test_every_read_out_learns_from_what_the_scenes_have(kind: str) -> None:
    torch.manual_seed(0)
    rng = random.Random(3)
    scenes = [sample_scene(rng, kind) for _ in range(24)]  # type: ignore[arg-type]
    read_out, patches = ReadOut(32), torch.randn(24, 16, 32, requires_grad=True)
    _, view = camera().take(torch.zeros(24, 3, SIDE, SIDE), strength=0.5)
    loss = read_out.loss(patches, Truth(scenes), torch.arange(24), view)
    loss.backward()
    assert torch.isfinite(loss) and patches.grad is not None and patches.grad.any()
    gradient = read_out.parts[-1].weight.grad
    assert gradient is not None
    *drawn, letters = gradient.split(read_out.sizes)
    assert bool(letters.any()) == (kind != "benign") and bool(drawn[-1].any()) == (kind != "benign_word")
    assert len(drawn[-1]) == len(COLOURS)
