"""What the config of any family says about its LLM. No model is needed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

PER_LAYER = "layer_types"
"""Some configs list their layers by kind; the list is as long as there are layers."""


def text(config: Any) -> Any:
    """The LLM's own config. Its class depends on the LLM, hence `Any`."""
    return config.text_config


def hidden_size(config: Any) -> int:
    """d, the LLM's width, which is also the width of an image token."""
    return int(text(config).hidden_size)


def vocabulary_size(config: Any) -> int:
    """Rows of the LLM's embedding table."""
    return int(text(config).vocab_size)


def image_token_id(config: Any) -> int:
    """Id that fills the image slots of `input_ids`."""
    return int(config.image_token_id)


def positions(config: Any) -> int:
    """Tokens of prompt and answer together that the LLM was made for."""
    return int(text(config).max_position_embeddings)


def lm_layers(config: Any) -> int:
    """Decoder layers of the LLM."""
    return int(text(config).num_hidden_layers)


@contextlib.contextmanager
def with_lm_layers(config: Any, layers: int) -> Iterator[None]:
    """Models that are built from this config in here have so many decoder layers; 0 leaves the LLM on the disk."""
    before = copy.deepcopy(config)
    set_lm_layers(config, layers)
    try:
        yield
    finally:
        copy_lm_layers(before, config)


def set_lm_layers(config: Any, layers: int) -> None:
    """Changes the config in place; of layers that it lists by kind the first ones stay."""
    own = text(config)
    kinds = getattr(own, PER_LAYER, None)
    if kinds is not None:
        setattr(own, PER_LAYER, list(kinds[:layers]))
    own.num_hidden_layers = layers


def copy_lm_layers(source: Any, config: Any) -> None:
    """Gives `config` the layers that `source` says, in place."""
    own, kinds = text(config), getattr(text(source), PER_LAYER, None)
    if kinds is not None:
        setattr(own, PER_LAYER, list(kinds))
    own.num_hidden_layers = lm_layers(source)
