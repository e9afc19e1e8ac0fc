"""Animations and pages: every frame can be had, or the image is refused; what is looked at in part looks safe."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data import images
from safevlm.data.images import ImageError, open_frames, open_image

COLOURS = ("red", "lime", "blue")
FORMATS: dict[str, dict[str, Any]] = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "MPO": {}}


def _animation(kind: str = "GIF", colours: tuple[str, ...] = COLOURS, size: tuple[int, int] = (16, 12)) -> bytes:
    first, *others = [Image.new("RGB", size, colour) for colour in colours]
    content = BytesIO()
    first.save(content, kind, save_all=True, append_images=others, duration=50, **FORMATS[kind])
    return content.getvalue()


def _colour(image: Image.Image) -> str:
    """The nearest of the colours."""
    assert image.mode == "RGB"
    red, green, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]  # of RGB it is a triple
    return COLOURS[max(range(3), key=(red, green, blue).__getitem__)]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_frame_is_given_and_the_first_is_what_the_model_sees(kind: str) -> None:
    data = _animation(kind)
    frames = list(open_frames(data))
    assert [_colour(frame) for frame in frames] == list(COLOURS)
    assert frames[0].tobytes() == open_image(data).tobytes()
    assert [len(list(open_frames(_animation(kind, (colour,))))) for colour in COLOURS] == [1, 1, 1]


def test_pages_of_other_sizes_and_modes_are_frames_too() -> None:
    grey = Image.frombytes("I;16", (3, 2), b"\xff\xff" * 6)
    content = BytesIO()
    Image.new("RGB", (16, 12), "red").save(content, "TIFF", save_all=True, append_images=[grey, Image.new("1", (5, 5))])
    frames = list(open_frames(content.getvalue()))
    assert [(frame.size, frame.getpixel((0, 0))) for frame in frames] == [
        ((16, 12), (255, 0, 0)),
        ((3, 2), (255, 255, 255)),
        ((5, 5), (0, 0, 0)),
    ]


@pytest.mark.parametrize("stands_at", [0, 1, 2])
def test_of_an_open_image_the_frame_at_hand_comes_first_and_it_still_stands_there(stands_at: int) -> None:
    given = Image.open(BytesIO(_animation()))
    given.seek(stands_at)
    order = [_colour(frame) for frame in open_frames(given)]
    assert order[0] == COLOURS[stands_at] and sorted(order) == sorted(COLOURS)
    assert given.tell() == stands_at and _colour(open_image(given)) == COLOURS[stands_at]


def test_of_a_closed_image_the_frame_at_hand_is_all_that_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(_animation())
    with Image.open(tmp_path / "a.gif") as given:
        given.load()
    assert [_colour(frame) for frame in open_frames(given)] == ["red"]


def test_more_frames_than_the_bound_are_refused_and_the_bound_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FRAMES", 3)
    assert len(list(open_frames(_animation()))) == 3
    many = _animation(colours=(*COLOURS, "red"))
    with pytest.raises(ImageError, match="more than 3 frames"):
        list(open_frames(many))
    assert _colour(open_image(many)) == "red", "who looks at the first frame only needs no bound"


def test_pixels_of_all_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS_OF_FRAMES", 3 * 16 * 12 - 1)
    with pytest.raises(ImageError, match="together"):
        list(open_frames(_animation()))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO"])
def test_a_frame_that_cannot_be_read_is_an_error_and_not_the_end(kind: str) -> None:
    data = _animation(kind, size=(90, 70))
    with pytest.raises(ImageError):
        list(open_frames(data[: -20 if kind == "GIF" else -100]))


@pytest.mark.parametrize("door", [lambda path: path, lambda path: str(path), Path.read_bytes])
def test_frames_come_through_every_door(tmp_path: Path, door: Callable[[Path], Any]) -> None:
    (tmp_path / "a.webp").write_bytes(_animation("WEBP"))
    assert len(list(open_frames(door(tmp_path / "a.webp")))) == 3
