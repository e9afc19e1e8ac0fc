"""A stage trains exactly its row of the table, in float32, and nothing else."""

from __future__ import annotations

import dataclasses
import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from safevlm.config import LoraSettings
from safevlm.model import layout
from safevlm.model.safety_modules import is_safety_name
from safevlm.training.prepare import prepare, trainable
from safevlm.training.stages import STAGES
from tests import tiny

LORA = LoraSettings(r=4, alpha=8, dropout=0.0)
PLACES = {
    f"model.language_model.layers.{layer}.{place}_proj"
    for layer, place in product(
        range(2), ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    )
}
"""What stage 2 adapts in tests/tiny.py's LLM, spelled out."""


def _prepared(stage: str, dtype: torch.dtype = torch.float32, **safety: Any) -> Any:
    return prepare(tiny.safe_llava(**safety).to(dtype), STAGES[stage], tiny.recipe(stage, lora=LORA))


def _adapted(model: nn.Module) -> set[str]:
    names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name.removeprefix("base_model.model.") for name in names}


def test_stage1_trains_the_safety_weights_and_no_other() -> None:
    model = _prepared("stage1")
    ours = {name for name, _ in model.named_parameters() if name.startswith("safety_")}
    assert set(trainable(model)) == ours
    parts = {name.split(".")[0] for name in ours}
    assert parts == {"safety_lm_tokens", "safety_projector", "safety_head"}, "tokens, projector and head all train"
    assert _adapted(model) == set()


def test_stage2_trains_a_lora_on_the_llms_linear_layers_and_no_other() -> None:
    model = _prepared("stage2")
    assert _adapted(model) == PLACES, "the LoRA leaked, or missed a layer (methods §1.9, trap 5)"
    expected = {f"base_model.model.{place}.lora_{side}.default.weight" for place, side in product(PLACES, "AB")}
    assert set(trainable(model)) == expected
    for part in ("vision_tower", "multi_modal_projector", "lm_head", "embed_tokens", "safety_"):
        assert not any(part in name for name in trainable(model)), f"{part} must stay as it is in stage 2"


def test_stage2_of_a_model_without_safety_modules_is_a_plain_lora() -> None:
    assert _adapted(_prepared("stage2", **tiny.BARE)) == PLACES


def test_stage2_uses_the_recipes_settings() -> None:
    model = prepare(
        tiny.safe_llava(), STAGES["stage2"], tiny.recipe("stage2", lora=LoraSettings(r=6, alpha=3, dropout=0.25))
    )
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (6, 3, 0.25, "none")
    shapes = {weight.shape[0] for name, weight in model.named_parameters() if ".lora_A." in name}
    assert shapes == {6}


def test_stage2_starts_as_the_model_it_was() -> None:
    inputs = tiny.batch([1, 0], tiny.safe_llava().slots)
    with torch.no_grad():
        assert torch.equal(_prepared("stage2").eval()(**inputs).logits, tiny.safe_llava()(**inputs).logits)


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.fit is None])
def test_what_trains_is_float32_and_the_rest_keeps_its_type(stage: str) -> None:
    model = _prepared(stage, torch.bfloat16)
    types = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert types == {torch.float32}, "at lr 1e-5 bf16 weights hardly move (base facts §4.2)"
    frozen = {weight.dtype for weight in model.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16}, "the frozen weights grew to twice their size"


def test_stage1_without_safety_modules_is_an_error() -> None:
    with pytest.raises(ValueError, match="model.safety"):
        _prepared("stage1", **tiny.BARE)


def test_lora_that_lands_nowhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = dataclasses.replace(layout.LLAVA, lora_targets=r"model\.no_such_model\..*")
    monkeypatch.setattr(layout, "LLAVA", nowhere)
    with pytest.raises(ValueError):
        _prepared("stage2")


def test_trainable_counts_every_weight() -> None:
    model = _prepared("stage2")
    assert sum(trainable(model).values()) == sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert all(not is_safety_name(name) and re.search(r"\.lora_[AB]\.", name) for name in trainable(model))
