"""What teaches a tower: gradient steps of every kind go down, and images that are drawn otherwise stay images."""

from __future__ import annotations

import pytest
import torch

from safevlm.pictograms.base.restyle import restyle
from safevlm.worlds.descent import MATRIX_OPTIMIZERS, Descent, MatrixSteps
from safevlm.worlds.muon import orthogonal


@pytest.mark.parametrize("steps", MATRIX_OPTIMIZERS)
def test_every_kind_of_step_goes_down(steps: MatrixSteps) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(8, 8)]), "out": torch.nn.Linear(8, 1)})
    descent, x = Descent(model, 150, 1e-2, 3e-2, steps), torch.randn(32, 8)
    losses = []
    for _ in range(150):
        descent.step((model["out"](model["layers"][0](x)) - x[:, :1]).square().mean())
        losses.append(descent.last)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_a_step_of_muon_is_about_orthogonal(shape: tuple[int, int]) -> None:
    singular = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_images_drawn_otherwise_hang_on_the_seed_and_stay_images() -> None:
    images = torch.rand(40, 3, 32, 32)
    first, again, other = (restyle(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1 and torch.isfinite(first).all()
