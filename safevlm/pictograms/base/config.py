"""How large the base is and how long each step takes."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class PictogramBaseConfig:
    """A step is one batch."""

    seed: int = 1_000_003
    scenes: int = 12_000
    """That the tower learns from, each seen in many ways."""
    sight_steps: int = 8_000
    """Of the tower alone, on what its patches show."""
    caption_steps: int = 200
    """On captions, of what lies above the layer that LLaVA reads and of the text tower."""
    clip_batch: int = 48
    align_steps: int = 100
    """Of the LLM, in words alone."""
    align_batch: int = 16
    pictures: int = 5_000
    """That the LLM learns to see from; the tower reads each of them once."""
    fit_steps: int = 400
    """Of the new projector, towards the embeddings of names; 0: it starts at random, as LLaVA's did."""
    projector_steps: int = 40
    """Of the projector alone, on the names of things that stand alone."""
    see_steps: int = 300
    """Of projector and LoRA."""
    see_batch: int = 16
    cases: int = 200
    """Single things that are named, for each number; 0: nothing is measured."""
