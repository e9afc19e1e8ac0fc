"""Vectors of patches and the pixels that make them."""

from __future__ import annotations

import torch

from llava_patch import patch_basis
from tests import tiny


def _embedded(pixels: torch.Tensor, llava: torch.nn.Module) -> torch.Tensor:
    """(3, h, w) → (r, c, v), by the tower's own layer."""
    layer = llava.model.vision_tower.embeddings.patch_embedding
    with torch.no_grad():
        moved = layer(pixels[None]) - (0 if layer.bias is None else layer.bias.view(-1, 1, 1))
    return moved[0].permute(1, 2, 0)


def test_pixels_make_the_vectors_they_were_made_of() -> None:
    llava = tiny.stock_llava()
    vectors = torch.randn(patch_basis.shape_of(llava.config), generator=torch.Generator().manual_seed(0))
    pixels = patch_basis.pixels_of(vectors, patch_basis.inverse_of(llava))
    assert pixels.shape == (3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    torch.testing.assert_close(_embedded(pixels, llava), vectors, rtol=1e-4, atol=1e-4)


def test_pixels_are_the_smallest_that_make_them() -> None:
    llava = tiny.stock_llava()
    inverse = patch_basis.inverse_of(llava)
    any_pixels = tiny.pixels(1)[0]
    smallest = patch_basis.pixels_of(_embedded(any_pixels, llava), inverse)
    torch.testing.assert_close(_embedded(smallest, llava), _embedded(any_pixels, llava), rtol=1e-3, atol=1e-3)
    assert smallest.norm() < any_pixels.norm()
