"""Processors that stand in this tree, since transformers' own ones are not there without torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safevlm.backbones.table import BACKBONES
from tests.backbones import families

THEIRS = {"mistral3": "pixtral.processing_pixtral.PixtralProcessor"}
"""By family: where transformers has it."""
PLACEHOLDERS = {"mistral3": "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]"}
"""What stands for an image of 24 x 16 pixels, tokens of 8 x 8."""
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


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="transformers' own need torchvision")
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
