"""The CLIP or SigLIP that a tiny model's vision tower is from, text side included: random, and saved as a folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, SiglipConfig, SiglipModel, SiglipTextConfig

POSITIONS = 96
"""More bytes than any template has."""
SCALE, BIAS = 10.0, -3.0


def whole_of(model: Any, tokenizer: Any) -> Any:
    """A whole CLIP or SigLIP with the model's tower; weights that the tower lacks are drawn."""
    tower = model.get_submodule("model.vision_tower")
    text = {
        "hidden_size": tower.config.hidden_size,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    is_clip = tower.config.model_type == "clip_vision_model"
    vision = {**tower.config.to_dict(), **({} if is_clip else {"vision_use_head": True})}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if is_clip:
            made: Any = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**text), vision_config=vision))
        else:
            made = SiglipModel(SiglipConfig(text_config=SiglipTextConfig(**text), vision_config=vision))
            made.logit_bias.data.fill_(BIAS)
            for name, weight in made.vision_model.head.named_parameters():
                torch.nn.init.normal_(weight, mean=float(name == "layernorm.weight"), std=0.3)
    made.logit_scale.data.fill_(math.log(SCALE))
    made.vision_model.load_state_dict(tower.state_dict(), strict=False)
    return made.eval()


def saved(made: Any, tokenizer: Any, folder: Path) -> Path:
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
