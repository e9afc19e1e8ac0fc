"""K extra vectors go in front of an image's tokens and come out again unchanged."""

from __future__ import annotations

import pytest
import torch

from llava_patch import image_tokens, parts
from tests import tiny


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_split_undoes_join(extra: int) -> None:
    generator = torch.Generator().manual_seed(0)
    added, image = (torch.randn(2, count, 8, generator=generator) for count in (extra, 6))
    joined = image_tokens.join(added, image)
    assert joined.shape == (2, extra + 6, 8)
    front, back = joined[:, :extra], joined[:, extra:]
    assert torch.equal(front, added) and torch.equal(back, image)


def test_join_takes_the_images_type() -> None:
    joined = image_tokens.join(torch.zeros(1, 2, 8), torch.zeros(1, 3, 8, dtype=torch.bfloat16))
    assert joined.dtype == torch.bfloat16, "float32 tokens would lift the whole prompt to float32"


def test_attached_hook_rewrites_the_projectors_output_until_removed() -> None:
    llava = tiny.stock_llava()
    projector = parts.projector(llava)
    patches = torch.randn(2, tiny.PATCHES, 32, generator=torch.Generator().manual_seed(0))
    extra = torch.ones(2, 3, 64)
    with torch.no_grad():
        stock = projector(patches)
        handle = image_tokens.attach(llava, lambda _projector, _inputs, output: image_tokens.join(extra, output))
        both = projector(patches)
        front, back = both[:, :3], both[:, 3:]
        assert torch.equal(front, extra) and torch.equal(back, stock)
        handle.remove()
        assert torch.equal(projector(patches), stock)
