"""How many floating-point operations a training step of the model is, by formula; what hardware adds is not counted.

A linear layer of n weights is 2 n operations per position it is applied to, and so is each of the two products of its
backward: the gradient of its input, needed where something that trains lies before it, and that of its weights, needed
where they train. So a part costs 2 n x positions x passes, and attention over t keys 4 t x width per query and layer
(half of that where it is causal), once forward and twice backward:

    part (positions)                        stage 1   head only   stage 2
    vision tower (patches + CLS)               1          1          1     frozen, under no_grad
    LLaVA's projector (patches)                1          -          1     frozen, and nothing before it trains
    LLM's layers, lm_head (tokens)             2          -          2     frozen; gradients pass to LM tokens or LoRA
    LoRA (tokens)                              -          -          3
    safety projector (patches, features)       3          3          1
    safety head's keys and values              3          3          1

Recomputation under gradient checkpointing is no work of the model, so it lowers the share of the peak (MFU, Chowdhery
et al., arXiv 2204.02311, appendix B). Left out as too small: norms, soft-max, loss, optimiser, embeddings, and that the
LLM's first layer in stage 2 has an input that wants no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from llava_patch import fields, parts
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig
from safevlm.training.stage import Stage


@dataclass(frozen=True)
class StepSize:
    """What goes through the model in one step."""

    rows: int
    tokens: int
    """Per row, image slots included."""
    images: int
    """Of all rows."""
    logits: int = 0
    """Positions per row of which the LLM gives logits."""


def training_step(model: SafeLlava, size: StepSize, stage: Stage, *, runs_llm: bool = True) -> dict[str, int]:
    """Operations of one step, forward and backward, by part. `model`: the SafeLlava, a LoRA's layers in it or not."""
    passes = 3 if stage.trains_head else 1
    work = {
        "tower": _tower(model, size),
        "safety projector": passes * _safety_projector(model, size),
        "safety head": passes * _head(model, size),
    }
    if runs_llm:
        tokens = size.rows * size.tokens
        through = 2 if stage.learns_through_llm(model.config.safety_config) else 1
        work |= {
            "projector": 2 * _weights(parts.projector(model)) * size.images * _patches(model),
            "llm": through * 2 * layer_weights(model.config) * len(parts.lm_layers(model)) * tokens,
            "logits": through * 2 * _lm_head(model) * size.rows * size.logits,
            "attention": (1 + 2 * (through - 1)) * _causal_attention(model, size),
            "lora": 3 * 2 * _lora(model) * tokens,
        }
    return work


def vision(model: SafeLlava, images: int) -> int:
    """Operations of one forward of the tower."""
    return _tower(model, StepSize(images, 0, images))


def looking(model: SafeLlava, images: int) -> int:
    """Operations of one forward of safety projector and head."""
    size = StepSize(images, 0, images)
    return _safety_projector(model, size) + _head(model, size)


def layer_weights(config: SafeLlavaConfig) -> int:
    """Weights of the linear layers of one of the LLM's layers, packed or not."""
    text, width = fields.text(config), fields.hidden_size(config)
    keys = width // text.num_attention_heads * (text.num_key_value_heads or text.num_attention_heads)
    return width * (2 * width + 2 * keys + 3 * text.intermediate_size)


def _tower(model: SafeLlava, size: StepSize) -> int:
    sizes = fields.sizes(model.config)
    linear = 2 * _weights(parts.vision_tower(model)) * sizes.tower_positions
    return size.images * (linear + sizes.tower_layers * 4 * sizes.tower_positions**2 * sizes.tower_width)


def _lm_head(model: SafeLlava) -> int:
    return fields.hidden_size(model.config) * fields.vocabulary_size(model.config)


def _causal_attention(model: SafeLlava, size: StepSize) -> int:
    return len(parts.lm_layers(model)) * size.rows * 2 * size.tokens**2 * fields.hidden_size(model.config)


def _lora(model: SafeLlava) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name)


def _safety_projector(model: SafeLlava, size: StepSize) -> int:
    """Layers before the pooling see every patch, those behind it every feature; gates of one position do not count."""
    if model.safety_projector is None:
        return 0
    features = model.config.safety_config.projector_tokens
    total = 0
    for name, module in model.safety_projector.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.endswith(("squeeze", "excite")):
            positions = _patches(model) if name.startswith("before") else features
            total += 2 * module.weight.numel() * positions
    return size.images * total


def _head(model: SafeLlava, size: StepSize) -> int:
    """Scores and weighted sums of every feature and head token. A head with one query of its own makes no keys and
    values of them: each of its heads reads them as they are; one that reads text makes both."""
    if model.safety_head is None:
        return 0
    safety, width = model.config.safety_config, fields.hidden_size(model.config)
    keys = safety.projector_tokens * size.images + safety.head_tokens * size.rows
    return 2 * 2 * width * (width if safety.reads_text else safety.head_heads) * keys


def _patches(model: SafeLlava) -> int:
    return fields.patches_per_side(model.config) ** 2


def _weights(module: nn.Module) -> int:
    """Of linear and convolution layers."""
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, (nn.Linear, nn.Conv2d)))
