"""Pixels come from fewer steps than transformers' own processors take, and are theirs to the bit: no difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from safevlm.data import chat, chat_messages, pixels
from safevlm.data.fast_pixels import fast_pixels
from safevlm.data.images import open_image
from safevlm.engine import Engine
from safevlm.types import Request
from tests.engine import engines

SQUARE = {"height": 64, "width": 64}
CROPS = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE)
PADS = LlavaImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE, do_pad=True)
KNOWN: dict[str, Any] = {
    "LLaVA-1.5": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "LLaVA-1.5, padded": LlavaImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True
    ),
    "miniature": CROPS,
    "padded": PADS,
    "LLaVA's class without padding": LlavaImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE),
    "padded to a resized square": LlavaImageProcessorPil(size=SQUARE, do_center_crop=False, do_pad=True),
    "squeezed": CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
    "odd crop": CLIPImageProcessorPil(size={"shortest_edge": 50}, crop_size={"height": 33, "width": 48}),
    "bilinear": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE, resample=2),
    "other numbers": CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size=SQUARE,
        image_mean=[0.5, 0.1, 0.9],
        image_std=[0.2, 0.5, 1],
        rescale_factor=0.01,
    ),
    "not cropped": CLIPImageProcessorPil(size={"shortest_edge": 40}, do_center_crop=False),
}
OTHERS: dict[str, Any] = {
    "crop beyond the image": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    "longest edge": CLIPImageProcessorPil(size={"shortest_edge": 40, "longest_edge": 80}, do_center_crop=False),
    "not normalized": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE, do_normalize=False),
    "not rescaled": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE, do_rescale=False),
    "padded CLIP": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, do_center_crop=False, do_pad=True, pad_size={"height": 400, "width": 400}
    ),
    "another family": SiglipImageProcessorPil(size=SQUARE),
}
SIZES = [(1, 1), (3, 90), (64, 64), (100, 31), (337, 336), (640, 480), (480, 640)]


def _noise(size: tuple[int, int], channels: int = 3, bits: type = np.uint8) -> np.ndarray:
    """(h, w, channels), or (h, w) for one."""
    made = np.random.default_rng(sum(size)).integers(0, np.iinfo(bits).max, (size[1], size[0], channels), bits)
    return made if channels > 1 else made[..., 0]


def _own(processor: Any, images: list[Image.Image]) -> np.ndarray:
    made: np.ndarray = processor(images, return_tensors="np")["pixel_values"]
    return made


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_pixels_are_the_processors_own(name: str, size: tuple[int, int]) -> None:
    image, processor = Image.fromarray(_noise(size)), KNOWN[name]
    own, fast = _own(processor, [image]), fast_pixels(processor, image)
    assert fast is not None, "these settings are known"
    assert fast.dtype == own.dtype and fast.shape == own[0].shape
    assert np.abs(fast - own[0]).max() == 0
    assert np.array_equal(pixels.pixel_values(processor, [image, image]).numpy(), np.concatenate([own, own]))
    assert np.array_equal(pixels.pixel_array(processor, image), own[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("miniature", size) for size in ((6000, 4000), (15_000, 1), (1, 15_000))]
    + [("padded", size) for size in ((6000, 4000), (8_000, 1))],
)
def test_huge_and_very_long_images_too(name: str, size: tuple[int, int]) -> None:
    image, processor = Image.fromarray(_noise(size)), KNOWN[name]
    pixels.check_fits(processor, image, "it")
    fast = fast_pixels(processor, image)
    assert fast is not None and np.array_equal(fast, _own(processor, [image])[0])


def _palette(transparent: bool) -> bytes:
    image = Image.fromarray(_noise((90, 60))).quantize(32)
    return _file(image, "PNG", **({"transparency": 3} if transparent else {}))


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


MODES: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: _file(Image.fromarray(_noise((90, 60))), "PNG"),
    "RGB with a transparent colour": lambda: _file(Image.fromarray(_noise((90, 60))), "PNG", transparency=(1, 2, 3)),
    "JPEG": lambda: _file(Image.fromarray(_noise((90, 60))), "JPEG"),
    "L": lambda: _file(Image.fromarray(_noise((90, 60), 1)), "PNG"),
    "RGBA": lambda: _file(Image.fromarray(_noise((90, 60), 4)), "PNG"),
    "LA": lambda: _file(Image.fromarray(_noise((90, 60), 4)).convert("LA"), "PNG"),
    "P": lambda: _palette(False),
    "P with a transparent colour": lambda: _palette(True),
    "CMYK": lambda: _file(Image.fromarray(_noise((90, 60))).convert("CMYK"), "JPEG"),
    "1": lambda: _file(Image.fromarray(_noise((90, 60), 1)).convert("1"), "PNG"),
    "16 bits": lambda: _file(Image.fromarray(_noise((90, 60), 1, np.uint16)), "PNG"),
    "TIFF of 32 bits": lambda: _file(Image.fromarray(_noise((90, 60), 1, np.uint8).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("processor", [CROPS, PADS], ids=["crops", "pads"])
@pytest.mark.parametrize("mode", MODES)
def test_files_of_every_mode_give_the_processors_own_pixels(mode: str, processor: Any) -> None:
    image = open_image(MODES[mode]())
    fast = fast_pixels(processor, image)
    assert fast is not None, "whatever is opened is RGB"
    assert np.array_equal(fast, _own(processor, [image])[0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_images_that_are_not_rgb_are_left_to_the_processor(mode: str) -> None:
    image = Image.fromarray(_noise((90, 60), 1, np.uint16)) if mode == "I;16" else Image.new(mode, (90, 60), 7)
    rgb = Image.fromarray(_noise((90, 60)))
    assert fast_pixels(CROPS, image) is None
    assert np.array_equal(pixels.pixel_values(CROPS, [rgb, image]).numpy(), _own(CROPS, [rgb, image]))
    transparent = rgb.copy()
    transparent.info["transparency"] = (1, 2, 3)
    assert fast_pixels(CROPS, transparent) is None


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_left_to_the_processor(name: str) -> None:
    image, processor = Image.fromarray(_noise((90, 60))), OTHERS[name]
    assert fast_pixels(processor, image) is None
    assert np.array_equal(pixels.pixel_values(processor, [image]).numpy(), _own(processor, [image]))


def test_a_setting_that_changes_is_followed() -> None:
    processor, image = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE), Image.new("RGB", (90, 60))
    for mean in ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]):
        processor.image_mean = mean
        assert np.array_equal(pixels.pixel_array(processor, image), _own(processor, [image])[0])


def test_a_class_of_ones_own_and_a_processor_that_takes_other_steps_are_asked_themselves() -> None:
    class CLIPImageProcessorPil(type(CROPS)):  # type: ignore[misc]  # a base of this very name
        pass

    image = Image.fromarray(_noise((90, 60)))
    assert fast_pixels(CLIPImageProcessorPil(), image) is None
    later: Any = type(CROPS)(size={"shortest_edge": 64}, crop_size=SQUARE)
    later.center_crop = lambda image, size, **_: image[..., :64, :64]  # as a later transformers might
    assert fast_pixels(later, image) is None
    assert np.array_equal(pixels.pixel_array(later, image), _own(later, [image])[0])


@pytest.mark.parametrize("counts", [(1, 0, 2), (1, 1)])
def test_a_batch_of_training_has_the_processors_own_pixels(counts: Sequence[int], monkeypatch: Any) -> None:
    processor = engines.processor_of(engines.model())
    images = [[Image.fromarray(_noise((90 + turn, 60))) for turn in range(count)] for count in counts]
    dialogues = [[chat_messages.user("What is it?", len(own)), chat_messages.assistant("A cup.")] for own in images]
    fast = chat.encode_dialogues(processor, dialogues, images)
    monkeypatch.setattr(chat, "ready_pixels", lambda processor, images: None)
    own = chat.encode_dialogues(processor, dialogues, images)
    assert set(fast) == set(own) and all(torch.equal(fast[name], own[name]) for name in own)
    assert all(fast[name].dtype == own[name].dtype for name in own)


@pytest.mark.slow
def test_verdicts_and_answers_of_the_shipped_miniature_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load("checkpoints/miniature", defense="safe-clip", device="cpu")
    images = [engines.image(seed).resize(size) for seed, size in enumerate([(64, 64), (640, 480), (120, 300)] * 8)]
    requests = [Request("What is it?", (image,)) for image in images]
    fast = engine.reply_all(requests, engines.SHORT)
    asked: list[int] = []

    def not_ready(processor: Any, images: Sequence[Image.Image]) -> None:
        asked.append(len(images))

    monkeypatch.setattr(pixels, "ready_pixels", not_ready)
    own = engine.reply_all(requests, engines.SHORT)
    assert sum(asked) == len(images)
    assert [(reply.verdict, reply.text) for reply in fast] == [(reply.verdict, reply.text) for reply in own]
    assert len({reply.verdict.category for reply in fast}) > 1
