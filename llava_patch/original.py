"""Original LLaVA-v1.5 folders: what one is, and what its config and weights are called in transformers' layout.

| kind        | told by                                                   | what is missing from the folder            |
|-------------|-----------------------------------------------------------|--------------------------------------------|
| `full`      | an LLM's weights                                          | the vision tower, unless it was tuned      |
| `projector` | `mm_projector.bin`, no LLM                                | LLM and tower                              |
| `lora`      | `adapter_config.json`                                     | LLM (an adapter on it is here) and tower   |

The trap: `config.json` says `model_type: llava`, as transformers' own folders do; only the sections differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_patch import weights

Kind = Literal["full", "projector", "lora"]
MODEL_TYPES = ("llava", "llava_llama")
LLM_TYPES = ("llama", *MODEL_TYPES)
ADAPTER_CONFIG, NON_LORA, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"

PREFIX = re.compile(r"^base_model\.model\.")
"""PEFT's, in front of what was saved from a model with an adapter on it."""
NAMES = (
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"language_model.model.\1."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^(?:model\.)?mm_projector\.(?:0\.)?(weight|bias)$"), r"multi_modal_projector.linear_1.\1"),
    (re.compile(r"^(?:model\.)?mm_projector\.2\.(weight|bias)$"), r"multi_modal_projector.linear_2.\1"),
    (re.compile(r"^model\.vision_tower\.vision_tower\.vision_model\."), "vision_tower.vision_model."),
)
"""Original name → the one that llava-hf folders have on disk."""
TOWER_NAMES = (
    (
        re.compile(r"^(?:vision_model\.)?(embeddings|pre_layrnorm|encoder|post_layernorm)\."),
        r"vision_tower.vision_model.\1.",
    ),
)
"""The same for a CLIP folder."""
BUFFERS = re.compile(r"(\.rotary_emb\.inv_freq|embeddings\.position_ids)$")
"""Computed from the config; old versions of transformers saved them. The only names that may be left over."""
TEXT_HALF = re.compile(r"^(text_model\.|logit_scale$|(text|visual)_projection\.)")
"""What a full CLIP holds beside the tower."""
DISK = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.vision_tower\."), "vision_tower.vision_model."),
    (re.compile(r"^model\.multi_modal_projector\."), "multi_modal_projector."),
)
"""Name in memory → name on disk."""
EMBEDDINGS, LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

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
STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""mm_vision_select_feature → vision_feature_select_strategy."""
PADDED, PLAIN = ("pad",), (None, "square")
"""Values of image_aspect_ratio."""
TOWERS = {
    "clip-vit-large-patch14-336": {"image_size": 336, "patch_size": 14},
    "clip-vit-large-patch14": {"image_size": 224, "patch_size": 14},
}
"""Towers whose sizes are known without their folder: OpenAI's CLIP-L, by the last part of mm_vision_tower."""
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json was written by the original LLaVA code."""
    ours = config.get("model_type") in MODEL_TYPES and "text_config" not in config
    return ours and any(key.startswith("mm_") for key in config)


def kind_of(folder: Path) -> Kind:
    """What an original folder holds, from its files alone. ValueError when it holds no weights."""
    if (folder / ADAPTER_CONFIG).is_file():
        return "lora"
    if weights.find(folder):
        return "full"
    if (folder / PROJECTOR).is_file():
        return "projector"
    raise ValueError(
        f"{folder}: no weights here: neither an LLM's ({', '.join(weights.FILES)}), nor {PROJECTOR}, "
        f"nor a LoRA ({ADAPTER_CONFIG}); fetch the folder again"
    )


def translate(names: list[str], where: Path) -> dict[str, str]:
    """Original names of weights → {name on disk in transformers' layout: original name}. ValueError: unknown name."""
    return _translate(names, NAMES, BUFFERS, where)


def translate_tower(names: list[str], where: Path) -> dict[str, str]:
    """The same for a CLIP folder, with or without its text half."""
    wanted = [name for name in names if not TEXT_HALF.search(name)]
    return _translate(wanted, TOWER_NAMES, BUFFERS, where)


def config_of(table: Mapping[str, Any], text: Mapping[str, Any], vision: CLIPVisionConfig, where: Path) -> LlavaConfig:
    """An original config → transformers'. `text` is the LLM's table; the vocabulary is left to the caller.

    ValueError names the field of `where` that transformers' LLaVA cannot express.
    """
    return LlavaConfig(
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
    kind = table.get("mm_projector_type", "linear")
    deep = re.fullmatch(r"mlp(\d+)x_gelu", str(kind))
    layers = 1 if kind == "linear" else int(deep[1]) if deep else 0
    if layers not in (1, 2):
        raise ValueError(f"{where}: mm_projector_type {kind!r} cannot be converted; only linear and mlp2x_gelu")
    return layers


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
    sizes = TOWERS.get(str(table.get("mm_vision_tower")).rpartition("/")[2])
    return CLIPVisionConfig(**CLIP_LARGE, **sizes, projection_dim=768) if sizes else None


def expected(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Name on disk → shape, of every weight of a LLaVA of this config."""
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    return {_rename(name, DISK) or name: tuple(tensor.shape) for name, tensor in state.items()}


def _translate(
    names: list[str], table: tuple[tuple[re.Pattern[str], str], ...], ignored: re.Pattern[str], where: Path
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        bare = PREFIX.sub("", name)
        if ignored.search(bare):
            continue
        target = _rename(bare, table)
        if target is None:
            raise ValueError(f"{where}: weight {name!r} is unexpected; LLaVA-v1.5 has none of that name")
        if target in found:
            raise ValueError(f"{where}: weights {found[target]!r} and {name!r} are the same one")
        found[target] = name
    return found


def _rename(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, target in table:
        if pattern.search(name):
            return pattern.sub(target, name)
    return None


def _choose(table: Mapping[str, Any], key: str, default: str, choices: Mapping[str, str], where: Path) -> str:
    value = table.get(key, default)
    if value not in choices:
        raise ValueError(f"{where}: {key} {value!r} is unknown; one of {list(choices)}")
    return choices[value]
