"""From 8-bit values to what the model reads: the map with a gradient is the processor itself, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from safevlm.backbones.image_inputs import ImageInput
from safevlm.data.pixel_map import PixelMap
from safevlm.data.pixels import read_images
from tests.backbones import families
from tests.engine import engines

RESIZING = ("idefics3", "smolvlm")
COPYING = [name for name in families.ANSWERING if name not in RESIZING]
SIZES = ((64, 64), (100, 75))


def check(processor: object, width: int, height: int) -> None:
    image = families.image(1, width, height)
    pixel_map = PixelMap.of(processor, image)
    native = pixel_map.native(image)
    again = Image.fromarray(native.permute(1, 2, 0).numpy())
    torch.testing.assert_close(pixel_map.native(again), native, rtol=0, atol=0)
    values = (native[None].float() / 255).requires_grad_()
    ours, theirs = pixel_map(values)[0], read_images(processor, [[again]])[0]
    if isinstance(ours, ImageInput):
        assert ours.tensors.keys() == theirs.tensors.keys() and ours.placeholder == theirs.placeholder
        for name, tensor in theirs.tensors.items():
            torch.testing.assert_close(ours.tensors[name], tensor, rtol=0, atol=1e-4, check_dtype=False)
        ours = ours.tensors["pixel_values"]
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    gradient = torch.autograd.grad(ours.sum(), values)[0]
    assert (gradient != 0).all(), "a value of the image that the model never reads"


@families.each(COPYING)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_map_makes_what_the_processor_makes_and_every_value_has_a_gradient(
    family: str, width: int, height: int
) -> None:
    check(families.stock(family)[1], width, height)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_map_of_llava_makes_what_its_processor_makes(width: int, height: int) -> None:
    check(engines.processor_of(engines.model()), width, height)


@families.each(RESIZING)
def test_processor_that_resizes_at_the_size_it_reads_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="resizes images"):
        PixelMap.of(families.stock(family)[1], families.image(1, 64, 64))


def test_native_image_of_llava_is_what_the_tower_sees_to_half_a_step() -> None:
    processor = engines.processor_of(engines.model())
    image = families.image(2, 100, 75)
    seen = read_images(processor, [[image]])
    native = PixelMap.of(processor, image).native(image)
    again = read_images(processor, [[Image.fromarray(np.asarray(native.permute(1, 2, 0)))]])
    step = 1 / 255 / min(processor.image_processor.image_std)
    assert (seen - again).abs().max() <= 0.51 * step
