"""The same weights are the same in any type; others are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava_patch.fingerprint import VALUES, fingerprint, is_same
from tests import tiny


def _tower(seed: int = 0) -> dict[str, Tensor]:
    return dict(tiny.shake(tiny.stock_llava(seed).model.vision_tower, seed).state_dict())


@pytest.mark.parametrize("types", [(torch.float16,), (torch.bfloat16,), (torch.float16, torch.bfloat16)], ids=str)
def test_copy_in_half_precision_is_the_same(types: tuple[torch.dtype, ...]) -> None:
    tower, copy = _tower(), _tower()
    for kind in types:
        copy = {name: weight.to(kind) for name, weight in copy.items()}
    assert is_same(fingerprint(tower), fingerprint(copy))
    assert is_same(fingerprint(copy), fingerprint(tower))


def test_another_checkpoint_is_not_the_same() -> None:
    assert not is_same(fingerprint(_tower(0)), fingerprint(_tower(1)))


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_one_tensor_that_differs_by_two_percent_is_not_the_same(factor: float) -> None:
    tower, tuned = _tower(), _tower()
    name = next(name for name in tuned if name.endswith("q_proj.weight"))
    tuned[name] = tuned[name] * factor
    assert not is_same(fingerprint(tower), fingerprint(tuned))


def test_prefix_of_another_release_does_not_matter() -> None:
    tower = _tower()
    renamed = {f"vision_model.{name}": tower[name] for name in reversed(tower)}
    assert torch.equal(fingerprint(tower), fingerprint(renamed))


def test_tower_of_another_depth_is_not_the_same() -> None:
    tower = _tower()
    shallow = {name: weight for name, weight in tower.items() if ".1." not in name}
    assert len(shallow) < len(tower) and not is_same(fingerprint(tower), fingerprint(shallow))


def test_weights_that_are_no_numbers_are_not_the_same_as_anything() -> None:
    broken = {name: weight * float("nan") for name, weight in _tower().items()}
    assert not is_same(fingerprint(broken), fingerprint(_tower()))


def test_size_is_a_few_values_per_tensor() -> None:
    tower = _tower()
    floats = sum(weight.is_floating_point() for weight in tower.values())
    assert fingerprint(tower).shape == (floats, VALUES)
