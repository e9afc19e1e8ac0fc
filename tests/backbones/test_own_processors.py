"""Processors that stand in this tree, since transformers' own ones are not there without torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safevlm.backbones.table import BACKBONES
from tests.backbones import families

THEIRS = {
    "mistral3": "pixtral.processing_pixtral.PixtralProcessor",
    "llama4": "llama4.processing_llama4.Llama4Processor",
}
"""By family: where transformers has it."""
TILE = "<|patch|>" * 4
PLACEHOLDERS = {
    "mistral3": "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]",
    "llama4": f"<|image_start|>{TILE}<|tile_x_separator|>{TILE}<|tile_y_separator|><|image|>{TILE}<|image_end|>",
}
"""What stands for an image of 24 x 16 pixels: tokens of 8 x 8, and tiles of 16 x 16 where there are any."""
each = families.each(THEIRS)


@each
def test_an_image_is_written_out_as_the_family_writes_it(family: str) -> None:
    _, processor = families.stock(family)
    (image,) = BACKBONES[family].read(processor, [families.image(0, 24, 16)])
    assert image.placeholder == PLACEHOLDERS[family]


@each
def test_a_saved_folder_names_transformers_class(family: str, tmp_path: Path) -> None:
    saved = json.loads((families.saved(family, tmp_path) / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["processor_class"] == THEIRS[family].rpartition(".")[2]


NEEDS_TORCHVISION = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="transformers' own need torchvision"
)


@pytest.mark.slow
@NEEDS_TORCHVISION
def test_llama4s_tiles_are_transformers_own_but_for_the_rounding_of_another_scaling() -> None:
    """Theirs rounds to bfloat16, whose step at 1 is 1/128; scaling rounds bytes, of which one is 2/255."""
    _, processor = families.stock("llama4")
    ours = processor.image_processor
    theirs: Any = importlib.import_module("transformers.models.llama4.image_processing_llama4").Llama4ImageProcessor
    for most, size in itertools.product((4, 16), ((12, 12), (24, 24), (40, 20), (7, 61), (90, 35), (200, 10))):
        for is_greedy in (False, True):
            told = {"max_patches": most, "resize_to_max_canvas": is_greedy, "return_tensors": "pt"}
            image = families.image(0, *size)
            one, two = (each(image, **told) for each in (ours, theirs(size=ours.size)))
            assert one["aspect_ratios"].tolist() == two["aspect_ratios"].tolist()
            assert (one["pixel_values"] - two["pixel_values"]).abs().max() <= 2 * 2 / 255 + 1 / 128


@NEEDS_TORCHVISION
@each
def test_they_read_as_transformers_own(family: str) -> None:
    _, ours = families.stock(family)
    module, _, name = THEIRS[family].rpartition(".")
    kind: Any = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    theirs = kind.from_args_and_dict([ours.image_processor, ours.tokenizer], ours.to_dict())
    text = f"What is {ours.image_token} and {ours.image_token}?"
    for width, height in ((24, 24), (40, 20), (7, 31)):
        images = [[families.image(0, width, height), families.image(1, 20, 44)]]
        one, two = (each(text=[text], images=images, return_tensors="pt") for each in (ours, theirs))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
