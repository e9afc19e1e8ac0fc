"""LLaVA-v1.5-7B and -13B on the meta device: names, shapes and the number of safety weights, without a byte of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from safevlm.config import SafetyConfig
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig
from safevlm.model.safety_modules import PREFIX


@dataclass(frozen=True)
class Size:
    """A published LLaVA-v1.5 and what our modules weigh on it."""

    width: int
    layers: int
    heads: int
    intermediate: int
    lm_tokens: int
    projector: int
    head: int


SIZES = {
    "7b": Size(4096, 32, 32, 11008, lm_tokens=262_144, projector=40_115_920, head=67_436_555),
    "13b": Size(5120, 40, 40, 13824, lm_tokens=327_680, projector=50_669_264, head=105_267_211),
}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())

VISION_WIDTH, PROJECTOR_WIDTH, DEPTH, TOKENS, LEVELS, CATEGORIES = 1024, 1088, 3, 64, 4, 7


def _config(size: Size) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text)


@functools.cache
def _safe(size: Size) -> SafeLlava:
    with torch.device("meta"):
        return SafeLlava(SafeLlavaConfig.from_stock(_config(size), SafetyConfig()))


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _reg_block(inner: int, outer: int) -> int:
    """1×1, depthwise 3×3 and 1×1 convolution without bias, a norm after each; gates; a shortcut where widths differ."""
    squeezed = inner // 4
    gates = outer * squeezed + squeezed + squeezed * outer + outer
    shortcut = 0 if inner == outer else inner * outer + 2 * outer
    return inner * outer + 9 * outer + outer * outer + 3 * 2 * outer + gates + shortcut


def _projector(width: int) -> int:
    stages = _reg_block(VISION_WIDTH, PROJECTOR_WIDTH) + (2 * DEPTH - 1) * _reg_block(PROJECTOR_WIDTH, PROJECTOR_WIDTH)
    return stages + (PROJECTOR_WIDTH + 1) * width + (width + 1) * width


def _head(width: int) -> int:
    bank, query, attention = TOKENS * width, width, 4 * width * width + 4 * width
    return bank + query + attention + (width + 1) * (LEVELS + CATEGORIES)


@sizes
def test_safety_weights_are_three_parts_of_known_size(size: Size) -> None:
    model = _safe(size)
    parts = {name.split(".")[0] for name, _ in model.named_parameters() if name.startswith(PREFIX)}
    assert parts == {"safety_lm_tokens", "safety_projector", "safety_head"}
    assert _count(model.safety_lm_tokens) == size.lm_tokens == TOKENS * size.width
    assert _count(model.safety_projector) == size.projector == _projector(size.width)
    assert _count(model.safety_head) == size.head == _head(size.width)
    total = sum(weight.numel() for name, weight in model.named_parameters() if name.startswith(PREFIX))
    assert total == size.lm_tokens + size.projector + size.head


@sizes
def test_banks_head_and_slots_follow_the_llms_width(size: Size) -> None:
    model = _safe(size)
    assert model.safety_lm_tokens.latent.shape == (64, size.width)
    assert model.safety_head.tokens.latent.shape == (64, size.width)
    assert model.safety_head.attention.embed_dim == size.width
    assert model.safety_head.attention.num_heads == 8
    assert model.slots == 64 + 576


@sizes
def test_everything_else_has_stock_names_and_shapes(size: Size) -> None:
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(_config(size))
    theirs = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    ours = {name: tuple(tensor.shape) for name, tensor in _safe(size).state_dict().items()}
    assert {name: shape for name, shape in ours.items() if not name.startswith(PREFIX)} == theirs


@sizes
def test_one_image_becomes_576_safety_features(size: Size) -> None:
    features = _safe(size).safety_projector(torch.empty(1, 576, VISION_WIDTH, device="meta"))
    assert features.shape == (1, 576, size.width)
