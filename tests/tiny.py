"""Tiny random LLaVAs: every invariant of the big one, in milliseconds. Seeded, offline, on the CPU.

    tower: width 32, 3 layers, 16 patches · LLM: `width`, 2 layers · ids: 0 pad, 1 bos, 2 unk, 3 eos, 4 <image>, words

Weights are drawn five times wider than usual, so that what must matter moves the logits visibly.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from safevlm.config import DataConfig, ModelConfig, Recipe, RunConfig, SafetyConfig
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig

PAD, BOS, EOS, IMAGE, FIRST_WORD = 0, 1, 3, 4, 5
VOCABULARY = 300
IMAGE_SIZE, PATCH = 32, 8
PATCHES = (IMAGE_SIZE // PATCH) ** 2
WEIGHT_STD = 0.1

SAFETY: dict[str, Any] = {
    "projector_width": 16,
    "projector_depth": 1,
    "projector_tokens": 4,
    "lm_tokens": 3,
    "head_tokens": 2,
    "head_heads": 4,
}
BARE: dict[str, Any] = {"projector": "none", "lm_tokens": 0, "head_tokens": 0}
"""Overrides that leave a stock LLaVA."""


def stock_config(width: int = 64, image_size: int = IMAGE_SIZE, patch: int = PATCH, **llava: Any) -> LlavaConfig:
    """A stock config; `llava` overrides LLaVA's own fields (vision_feature_layer, …)."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
        projection_dim=24,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=WEIGHT_STD,
    )
    fields = {"image_token_index": IMAGE, "image_seq_length": (image_size // patch) ** 2, "pad_token_id": PAD, **llava}
    return LlavaConfig(vision_config=vision, text_config=text, **fields)


def stock_llava(seed: int = 0, width: int = 64, **fields: Any) -> LlavaForConditionalGeneration:
    """A stock LLaVA with random weights, the caller's own; `fields` as in `stock_config`."""
    return copy.deepcopy(_stock_llava(seed, json.dumps({"width": width, **fields}, sort_keys=True)))


def safety_config(**overrides: Any) -> SafetyConfig:
    return SafetyConfig(**{**SAFETY, **overrides})


def safe_config(config: LlavaConfig, **overrides: Any) -> SafeLlavaConfig:
    return SafeLlavaConfig.from_stock(config, safety_config(**overrides))


def safe_llava(
    stock: str | os.PathLike[str] | LlavaConfig | LlavaForConditionalGeneration | None = None,
    seed: int = 0,
    **overrides: Any,
) -> SafeLlava:
    """A stock folder, config or model (none: `stock_llava()`) with safety modules; `overrides` of `SAFETY`."""
    if stock is None:
        return copy.deepcopy(_safe_llava(seed, json.dumps(overrides, sort_keys=True)))
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        if isinstance(stock, LlavaConfig):
            return SafeLlava(safe_config(stock, **overrides)).eval()
        if isinstance(stock, LlavaForConditionalGeneration):
            model = SafeLlava(safe_config(stock.config, **overrides)).eval()
            model.load_state_dict(stock.state_dict(), strict=False)
            return model
        config = safe_config(LlavaConfig.from_pretrained(stock), **overrides)
        return SafeLlava.from_pretrained(stock, config=config).eval()


@functools.cache  # a copy costs a tenth of a build
def _stock_llava(seed: int, fields: str) -> LlavaForConditionalGeneration:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(stock_config(**json.loads(fields))).eval()


@functools.cache
def _safe_llava(seed: int, overrides: str) -> SafeLlava:
    return safe_llava(stock_llava(seed), seed, **json.loads(overrides))


def shake(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Adds noise to every weight, in place: no weight is left at a value that hides it (zero biases, unit norms)."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight += torch.randn(weight.shape, generator=noise) * std
    return module


def recipe(stage: str, **settings: Any) -> Recipe:
    """A recipe whose model and data are not read, for what depends on the stage and its settings alone."""
    return Recipe(stage, ModelConfig("base"), DataConfig(["records"]), RunConfig("out"), **settings)


def row(images: int, slots: int, words: int = 5, seed: int = 0) -> list[int]:
    """Ids of one prompt: bos, `images` times the slots of an image, then `words` random words."""
    noise = torch.Generator().manual_seed(seed)
    said = torch.randint(FIRST_WORD, VOCABULARY, (words,), generator=noise).tolist()
    return [BOS, *([IMAGE] * slots * images), *said]


def pad(rows: Sequence[Sequence[int]], side: str = "left", extra: int = 0) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of the rows, padded to the longest plus `extra`."""
    length = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, ids_of_row in enumerate(rows):
        place = slice(length - len(ids_of_row), length) if side == "left" else slice(0, len(ids_of_row))
        ids[index, place], mask[index, place] = torch.tensor(ids_of_row), 1
    return {"input_ids": ids, "attention_mask": mask}


def pixels(images: int, seed: int = 0, size: int = IMAGE_SIZE) -> Tensor:
    """(images, 3, size, size)."""
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(images_per_row: Sequence[int], slots: int, side: str = "left", extra: int = 0) -> dict[str, Tensor]:
    """Inputs of a forward: one row per entry, with so many images; lengths differ from row to row."""
    rows = [row(images, slots, words=5 + index, seed=index) for index, images in enumerate(images_per_row)]
    inputs = pad(rows, side, extra)
    return {**inputs, "pixel_values": pixels(sum(images_per_row))} if sum(images_per_row) else inputs


def words_of(input_ids: Tensor) -> Tensor:
    """(b, t) bool, True at words."""
    return input_ids >= FIRST_WORD
