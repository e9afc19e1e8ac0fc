"""A crop resized by itself has the values of the whole, to the bit, and is used where that is sure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safevlm.data.cropped_resize import Crop, Size, resized_crop

BICUBIC = Image.Resampling.BICUBIC


def _image(size: Size, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def _middle(size: Size, side: int) -> Crop:
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _shapes() -> Iterator[tuple[Size, Size, int]]:
    """(given, resized, side of the crop) as CLIP resizes photographs of many shapes to a shorter side."""
    rng = np.random.default_rng(1)
    for side in (32, 48, 50):
        for _ in range(60):
            width, height = 8 * rng.integers(5, 20, 2)
            scale = side / min(width, height)
            yield (int(width), int(height)), (int(width * scale), int(height * scale)), side


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Boxes that are resized by themselves."""
    found: list[tuple[float, ...]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: Any, resample: Any = None, box: Any = None, *more: Any) -> Image.Image:
        if box is not None:
            found.append(box)
        return resize(image, size, resample, box, *more)

    monkeypatch.setattr(Image.Image, "resize", noted)
    return found


def test_crops_of_all_shapes_have_the_values_of_the_whole(boxes: list[tuple[float, ...]]) -> None:
    for seed, (given, size, side) in enumerate(_shapes()):
        image, crop = _image(given, seed + 2), _middle(size, side)
        whole = image.resize(size, BICUBIC).crop(crop)
        assert resized_crop(image, size, crop, BICUBIC).tobytes() == whole.tobytes(), (given, size)
    assert len(boxes) > 20, "few shapes were resized by their box"


@pytest.mark.parametrize("given", [(640, 480), (500, 375), (1024, 768)], ids=str)
def test_a_photograph_for_llava_is_resized_by_its_box_alone(given: Size, boxes: list[tuple[float, ...]]) -> None:
    image, crop = _image(given), _middle((448, 336), 336)
    whole = image.resize((448, 336), BICUBIC).crop(crop)
    for _ in range(3):
        boxes.clear()
        assert resized_crop(image, (448, 336), crop, BICUBIC).tobytes() == whole.tobytes()
        assert boxes[-1] == (given[0] / 8, 0, given[0] * 7 / 8, given[1])
    assert len(boxes) == 1, "a known shape is not compared again"


@pytest.mark.parametrize("size", [(335, 224), (298, 224)], ids=str)
def test_a_box_that_no_float_holds_is_not_taken(size: Size, boxes: list[tuple[float, ...]]) -> None:
    resized_crop(_image((640, 480)), size, _middle(size, 224), BICUBIC)
    assert not boxes


@pytest.mark.parametrize("filter", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST])
def test_other_filters_resize_the_whole(filter: int, boxes: list[tuple[float, ...]]) -> None:
    image, crop = _image((64, 48)), _middle((32, 24), 24)
    whole = image.resize((32, 24), filter).crop(crop)
    assert resized_crop(image, (32, 24), crop, filter).tobytes() == whole.tobytes() and not boxes
