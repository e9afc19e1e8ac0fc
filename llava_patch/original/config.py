"""An original config.json → transformers' LlavaConfig."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from transformers import CLIPVisionConfig, LlamaConfig

from llava_patch.classes import Config
from llava_patch.original.folder import MODEL_TYPES

T = TypeVar("T", bound=str)

LLM_TYPES = ("llama", *MODEL_TYPES)
TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
)
STRATEGIES: dict[str, Literal["default", "full"]] = {"patch": "default", "cls_patch": "full"}
"""mm_vision_select_feature → vision_feature_select_strategy."""
PROJECTORS: dict[str, Literal[1, 2]] = {"linear": 1, "mlp1x_gelu": 1, "mlp2x_gelu": 2}
"""mm_projector_type → linear layers of the projector."""
PADDED, PLAIN = ("pad",), (None, "square")
"""Values of image_aspect_ratio."""
TOWERS = {
    "clip-vit-large-patch14-336": {"image_size": 336, "patch_size": 14},
    "clip-vit-large-patch14": {"image_size": 224, "patch_size": 14},
}
"""Towers whose sizes are known without their folder: OpenAI's CLIP-L, by the last part of mm_vision_tower."""
CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
"""Sizes that both have in common."""


def config_of(table: Mapping[str, Any], text: Mapping[str, Any], vision: CLIPVisionConfig, where: Path) -> Config:
    """An original config → transformers'. `text` is the LLM's table; the vocabulary is left to the caller.

    ValueError names the field of `where` that transformers' LLaVA cannot express.
    """
    return Config(
        vision_config=vision,
        text_config=text_config(text, where),
        vision_feature_layer=table.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_choose(table, "mm_vision_select_feature", "patch", STRATEGIES, where),
        projector_hidden_act="gelu" if layers_of_projector(table, where) == 2 else "linear",
        tie_word_embeddings=False,
    )


def text_config(table: Mapping[str, Any], where: Path) -> LlamaConfig:
    """The LLM's config from the flat table that the original keeps it in. ValueError: not a Llama."""
    if table.get("model_type") not in LLM_TYPES:
        raise ValueError(f"{where}: model_type {table.get('model_type')!r}: the LLM must be a Llama (Vicuna)")
    if "text_config" in table:
        raise ValueError(f"{where}: in transformers' layout already; give an original LLaVA or Vicuna folder")
    fields = {name: table[name] for name in TEXT_FIELDS if table.get(name) is not None}
    return LlamaConfig(**fields, tie_word_embeddings=False)


def layers_of_projector(table: Mapping[str, Any], where: Path) -> Literal[1, 2]:
    """Linear layers of the projector; transformers' LLaVA has room for two, and for one beside an identity."""
    kind = str(table.get("mm_projector_type", "linear"))
    if kind not in PROJECTORS:
        raise ValueError(f"{where}: mm_projector_type {kind!r} cannot be converted; only linear and mlp2x_gelu")
    return PROJECTORS[kind]


def pads_to_square(table: Mapping[str, Any], where: Path) -> bool:
    """Whether images are padded to a square before CLIP's own preprocessing."""
    aspect = table.get("image_aspect_ratio")
    if aspect not in PADDED + PLAIN:
        raise ValueError(f"{where}: image_aspect_ratio {aspect!r} is not LLaVA-v1.5's; only pad and square")
    return aspect in PADDED


def refuse_markers(table: Mapping[str, Any], where: Path) -> None:
    """ValueError for models that want `<im_start>` and `<im_end>` around an image: their prompts are others."""
    if table.get("mm_use_im_start_end"):
        raise ValueError(f"{where}: mm_use_im_start_end is set, which LLaVA-v1.5 never does; it cannot be converted")


def known_tower(table: Mapping[str, Any]) -> CLIPVisionConfig | None:
    """Config of the tower that `mm_vision_tower` names, if its sizes are known without its folder."""
    sizes: dict[str, Any] | None = TOWERS.get(str(table.get("mm_vision_tower")).rpartition("/")[2])
    return CLIPVisionConfig(**CLIP_LARGE, **sizes, projection_dim=768) if sizes else None


def _choose(table: Mapping[str, Any], key: str, default: str, choices: Mapping[str, T], where: Path) -> T:
    value = table.get(key, default)
    if value not in choices:
        raise ValueError(f"{where}: {key} {value!r} is unknown; one of {list(choices)}")
    return choices[value]
