"""What the config of any family says about its LLM, by the names of LLaVA's own. No model is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from llava_patch.fields import Sizes, hidden_size, image_token_id, lm_layers, positions, text, vocabulary_size

__all__ = [
    "copy_lm_layers",
    "hidden_size",
    "image_side",
    "image_token_id",
    "lm_layers",
    "positions",
    "set_lm_layers",
    "sizes",
    "text",
    "vocabulary_size",
    "with_lm_layers",
]

TYPICAL_SIDE = 448
"""Of a view of an image, for a tower that takes any size."""
TYPICAL_PATCHES = 4096
"""Of an image of about 900 x 900 pixels in patches of 14: what a tower that takes any size is reckoned with."""
SELECTS_LAYERS = ("vision_feature_layer", "intermediate_layers_indices")
"""Fields by which a family takes hidden states of the tower from within."""
PER_LAYER = "layer_types"
"""Some configs list their layers by kind; the list is as long as there are layers."""


@contextlib.contextmanager
def with_lm_layers(config: Any, layers: int) -> Iterator[None]:
    """Models that are built from this config in here have so many decoder layers; 0 leaves the LLM on the disk."""
    before = _layers(config)
    set_lm_layers(config, layers)
    try:
        yield
    finally:
        _give(config, *before)


def set_lm_layers(config: Any, layers: int) -> None:
    """Changes the config in place; of layers that it lists by kind the first ones stay."""
    own = text(config)
    kinds = getattr(own, PER_LAYER, None)
    if kinds is not None:
        setattr(own, PER_LAYER, list(kinds[:layers]))
    own.num_hidden_layers = layers


def copy_lm_layers(source: Any, config: Any) -> None:
    """Gives `config` the layers that `source` says, in place."""
    _give(config, *_layers(source))


def _layers(config: Any) -> tuple[int, list[str] | None]:
    """How many the LLM has, and their kinds where the config lists them."""
    return lm_layers(config), getattr(text(config), PER_LAYER, None)


def _give(config: Any, layers: int, kinds: list[str] | None) -> None:
    own = text(config)
    if kinds is not None:
        setattr(own, PER_LAYER, list(kinds))
    own.num_hidden_layers = layers


def sizes(config: Any) -> Sizes:
    """Layers, widths and counts of LLM and vision tower, as far as the config tells them.

    Where images differ in size, the tower's positions are those of `TYPICAL_PATCHES`.
    """
    llm, tower = text(config), config.vision_config
    width = _first(tower, "hidden_size", "embed_dim")
    return Sizes(
        lm_layers=llm.num_hidden_layers,
        lm_width=llm.hidden_size,
        lm_intermediate=llm.intermediate_size,
        lm_heads=llm.num_attention_heads,
        vocabulary=llm.vocab_size,
        tower_layers=_first(tower, "num_hidden_layers", "depth"),
        tower_width=width,
        tower_intermediate=_first(tower, "intermediate_size", default=4 * width),
        tower_positions=_positions_of_tower(tower),
        read_width=llm.hidden_size,  # a safety projector reads image tokens
        patches_per_read=_first(tower, "spatial_merge_size", default=1) ** 2,
        is_one_size=_side(tower) is not None,
        keeps_states=any(getattr(own, name, None) is not None for own in (config, tower) for name in SELECTS_LAYERS),
    )


def _positions_of_tower(tower: Any) -> int:
    side = _side(tower)
    if side is None:
        return TYPICAL_PATCHES
    patch = tower.patch_size
    return int(side // (patch[0] if isinstance(patch, list | tuple) else patch)) ** 2 + 1


def image_side(config: Any) -> int:
    """Pixels on the side of the square that the vision tower takes; `TYPICAL_SIDE` where it takes any size."""
    return _side(config.vision_config) or TYPICAL_SIDE


def _side(tower: Any) -> int | None:
    side = getattr(tower, "image_size", None)
    return None if side is None else int(side[0] if isinstance(side, list | tuple) else side)


def _first(config: Any, *names: str, default: int | None = None) -> int:
    """The first of these fields that the config has."""
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), default)
    if found is None:
        raise ValueError(f"{type(config).__name__} has none of {', '.join(names)}")
    return int(found)
