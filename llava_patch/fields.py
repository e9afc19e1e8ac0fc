"""What a LLaVA's config says: widths, counts, the image token. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava_patch.classes import Config


@dataclass(frozen=True)
class Sizes:
    """Everything that an estimate of memory needs."""

    lm_layers: int
    lm_width: int
    lm_intermediate: int
    lm_heads: int
    vocabulary: int
    """Rows of the embedding table, which may be more than the tokenizer has tokens."""
    tower_layers: int
    tower_width: int
    tower_intermediate: int
    tower_positions: int
    """Patches and CLS of one image."""
    read_width: int
    """Of a position that a safety projector reads."""
    patches_per_read: int = 1
    """Patches that are joined in one such position."""
    is_one_size: bool = True
    """Whether all images have as many patches."""
    keeps_states: bool = True
    """Whether the tower's hidden states of all layers are kept until it is done, because some are selected."""


def text(config: Config) -> Any:
    """The LLM's own config. Its class depends on the LLM, hence `Any`."""
    return config.text_config


def sizes(config: Config) -> Sizes:
    """Layers, widths and counts of LLM and vision tower."""
    llm, tower = text(config), _vision(config)
    return Sizes(
        lm_layers=llm.num_hidden_layers,
        lm_width=llm.hidden_size,
        lm_intermediate=llm.intermediate_size,
        lm_heads=llm.num_attention_heads,
        vocabulary=llm.vocab_size,
        tower_layers=tower.num_hidden_layers,
        tower_width=tower.hidden_size,
        tower_intermediate=tower.intermediate_size,
        tower_positions=patches_per_side(config) ** 2 + 1,
        read_width=patch_width(config),
    )


def hidden_size(config: Config) -> int:
    """d, the LLM's width, which is also the width of an image token."""
    return int(text(config).hidden_size)


def vocabulary_size(config: Config) -> int:
    """Rows of the LLM's embedding table."""
    return int(text(config).vocab_size)


def tower_width(config: Config) -> int:
    """Width of the vision tower's hidden states."""
    return int(_vision(config).hidden_size)


def patch_width(config: Config) -> int:
    """v, the width of a patch as the projector reads it: the tower's, once for every selected layer."""
    layers = config.vision_feature_layer
    return tower_width(config) * (1 if isinstance(layers, int) else len(layers))


def image_size(config: Config) -> int:
    """Pixels on the side of an image."""
    return int(_vision(config).image_size)


def pixel_shape(config: Config) -> tuple[int, int, int]:
    """(channels, height, width) of an image as the vision tower takes it."""
    return int(_vision(config).num_channels), image_size(config), image_size(config)


def patch_size(config: Config) -> int:
    """Pixels on the side of a patch."""
    return int(_vision(config).patch_size)


def patches_per_side(config: Config) -> int:
    """Rows, and columns, of the grid of patches of one image."""
    return image_size(config) // patch_size(config)


def keeps_cls(config: Config) -> bool:
    """Whether CLS stands among the patches (strategy `full`), so that they are no square grid."""
    return bool(config.vision_feature_select_strategy != "default")


def image_token_id(config: Config) -> int:
    """Id that fills the image slots of `input_ids`."""
    return int(config.image_token_id)


def positions(config: Config) -> int:
    """Tokens of prompt and answer together that the LLM was made for."""
    return int(text(config).max_position_embeddings)


def lm_layers(config: Config) -> int:
    """Decoder layers of the LLM."""
    return int(text(config).num_hidden_layers)


def set_lm_layers(config: Config, layers: int) -> None:
    """Changes the config in place."""
    text(config).num_hidden_layers = layers


def _vision(config: Config) -> Any:
    """The vision tower's own config."""
    return config.vision_config
