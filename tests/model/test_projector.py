"""Safety projectors: what goes in, what comes out, for every kind, grid and size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safevlm.config import SafetyConfig
from safevlm.model import projector
from safevlm.model.projector import CAbstractor
from tests import tiny

VISION_WIDTH, OUT = 24, 40
KINDS = ["c_abstractor", "resampler", "mlp"]


def _built(**overrides: object) -> nn.Module:
    torch.manual_seed(0)
    module = projector.build(tiny.safety_config(**overrides), VISION_WIDTH, OUT)
    assert module is not None
    return tiny.shake(module).eval()


def _patches(images: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, count, VISION_WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "features"), [("c_abstractor", 9), ("resampler", 9), ("mlp", 16)])
def test_features_have_the_llms_width_and_the_named_number(kind: str, features: int) -> None:
    out = _built(projector=kind, projector_tokens=9)(_patches(2, 16))
    assert out.shape == (2, features, OUT)


@pytest.mark.parametrize("side", [2, 3, 4, 7])
@pytest.mark.parametrize("tokens", [1, 4, 16, 25])
def test_c_abstractor_pools_any_square_grid_to_any_square_number_of_tokens(side: int, tokens: int) -> None:
    module = _built(projector="c_abstractor", projector_tokens=tokens)
    assert module(_patches(2, side * side)).shape == (2, tokens, OUT)


@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_resampler_gives_any_number_of_tokens(tokens: int) -> None:
    assert _built(projector="resampler", projector_tokens=tokens)(_patches(2, 16)).shape == (2, tokens, OUT)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_is_the_number_of_blocks_per_stage(depth: int) -> None:
    module = _built(projector="c_abstractor", projector_depth=depth)
    assert len(module.before) == len(module.after) == depth
    assert len(_built(projector="resampler", projector_depth=depth).layers) == depth


@pytest.mark.parametrize("tokens", [2, 8, 575])
def test_tokens_that_are_no_square_are_refused_with_the_number_and_the_fix(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"projector_tokens.*{tokens}.*not a square"):
        SafetyConfig(projector="c_abstractor", projector_tokens=tokens)
    assert SafetyConfig(projector="resampler", projector_tokens=tokens).projector_tokens == tokens


def test_none_builds_nothing() -> None:
    assert projector.build(tiny.safety_config(projector="none"), VISION_WIDTH, OUT) is None


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_do_not_see_one_another(kind: str) -> None:
    module, patches = _built(projector=kind), _patches(3, 16)
    alone = torch.cat([module(one) for one in patches.split(1)])
    torch.testing.assert_close(module(patches), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_and_every_weight_reaches_the_features(kind: str) -> None:
    module = _built(projector=kind)
    patches = _patches(1, 16).requires_grad_()
    (module(patches) * torch.randn(1, generator=torch.Generator().manual_seed(3))).pow(2).sum().backward()
    assert (patches.grad[0].abs().sum(1) > 0).all(), "a patch is thrown away"
    # a softmax is blind to what all keys share: a bias of the keys has no gradient
    dead = [name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not dead, f"weights that change nothing: {dead}"


def test_c_abstractor_keeps_the_grid_in_reading_order() -> None:
    module = _built(projector="c_abstractor", projector_tokens=4)
    patches = _patches(1, 16)
    changed = patches.clone()
    changed[0, 3] += 5.0  # row 0, column 3: upper right quarter
    moved = (module(changed) - module(patches)).abs().sum(-1)[0]
    assert moved.argmax() == 1, f"the upper right patch moved token {moved.argmax()}; rows and columns are swapped"


def test_c_abstractor_refuses_patches_that_are_no_grid() -> None:
    with pytest.raises((ValueError, RuntimeError), match="17"):
        _built(projector="c_abstractor")(_patches(1, 17))


def test_squeeze_excite_shrinks_to_a_quarter_of_the_blocks_input() -> None:
    module = CAbstractor(vision_width=8, width=16, depth=2, tokens=4, out=OUT)
    reduced = [part.squeeze.out_channels for part in module.modules() if isinstance(part, projector.SqueezeExcite)]
    assert reduced == [2, 4, 4, 4], "RegNet-Y: a quarter of the width that enters the block"


@pytest.mark.parametrize("layer", [projector.Pointwise(6, 8, bias=True), projector.Depthwise(6)], ids=["1x1", "3x3"])
def test_convolutions_with_channels_last_are_torchs_own(layer: nn.Conv2d) -> None:
    stock = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        padding=layer.padding,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    stock.load_state_dict(layer.state_dict())
    grid = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(grid), stock(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
