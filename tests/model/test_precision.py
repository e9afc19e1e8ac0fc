"""How float32 products of a head are computed, and that nobody else's are."""

from __future__ import annotations

import pytest
import torch

from safevlm.model.precision import for_verdicts, precise


def _now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("device", "inside"), [("cuda", ("high", True)), ("cpu", None)])
def test_verdicts_are_computed_by_the_matrix_units_of_a_gpu_alone(device: str, inside: tuple[str, bool] | None) -> None:
    before = _now()
    with for_verdicts(torch.device(device)):
        assert _now() == (inside or before)
    assert _now() == before


def test_the_setting_of_others_comes_back_after_an_error() -> None:
    before = _now()
    with pytest.raises(KeyError), precise("float32"):
        assert _now() == ("highest", False)
        raise KeyError
    assert _now() == before
