"""How large the base's models are."""

from __future__ import annotations

from typing import Any

from llava_patch import fresh
from safevlm.pictograms import drawing

PATCH = 16
PLACEHOLDER = "<image>" * (drawing.SIZE // PATCH) ** 2
READ_LAYER = -2
"""The tower's layer that LLaVA reads."""
TOWER = fresh.tower_sizes(
    width=192, intermediate=768, layers=5, heads=6, image=drawing.SIZE, patch=PATCH, shared_width=96
)
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "projection_dim": 96,
}
"""Of CLIP's text tower; its vocabulary is the LLM's."""
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
