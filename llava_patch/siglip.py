"""SigLIP's text side, and the head that pools its patches.

Each text stands alone under SigLIP's loss: a pair fits with probability σ(s·cos + b), where CLIP compares the texts
with one another (Zhai et al. 2023, arXiv 2303.15343, section 3.2). Two traps. Texts are padded to their full length,
without a mask, and read at the last place: an unpadded text is another vector. And models that are built on SigLIP's
tower read patches and leave the pooling head out, so it has to come along with the text side.

    p patches · v width, of tower and text space alike
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipModel, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

HEAD = "head."


@dataclass(frozen=True)
class Pooling:
    """What a pooling head's weights do not say."""

    heads: int
    norm_eps: float
    activation: str


def text_vectors(model: SiglipModel, tokenizer: Any, text: str) -> Tensor:
    """(1, d). ValueError: a text that it cannot read whole."""
    config: Any = model.config.text_config
    length = config.max_position_embeddings
    ids = tokenizer(text, padding="max_length", max_length=length, padding_side="right")["input_ids"]
    if len(ids) > length:
        raise ValueError(f"template {text!r}: {len(ids)} tokens, and this SigLIP reads {length}; shorten it")
    pooled: Tensor = model.text_model(torch.tensor([ids])).pooler_output
    return pooled


def pooling_of(model: SiglipModel) -> tuple[Pooling, dict[str, Tensor]]:
    """The head that pools the tower's patches, and its weights. ValueError: this SigLIP has none."""
    config: Any = model.config.vision_config
    weights = {
        name.removeprefix(HEAD): weight.detach().clone()
        for name, weight in model.vision_model.state_dict().items()
        if name.startswith(HEAD)
    }
    if not weights:
        raise ValueError("this SigLIP has no pooling head (vision_use_head is false); give the whole one")
    return Pooling(config.num_attention_heads, config.layer_norm_eps, config.hidden_act), weights


def pooling_head(pooling: Pooling, weights: Mapping[str, Tensor]) -> nn.Module:
    """(i, p, v) → (i, v). ValueError: weights that do not fit each other."""
    try:
        config = SiglipVisionConfig(
            hidden_size=weights["probe"].shape[-1],
            intermediate_size=len(weights["mlp.fc1.weight"]),
            num_attention_heads=pooling.heads,
            layer_norm_eps=pooling.norm_eps,
            hidden_act=pooling.activation,
        )
        head = SiglipMultiheadAttentionPoolingHead(config)
        head.load_state_dict(dict(weights))
    except (KeyError, IndexError, RuntimeError, AssertionError) as error:
        raise ValueError(f"the pooling head's weights do not fit: {str(error).strip().splitlines()[0]}") from error
    return head.eval().requires_grad_(False)
