"""Names of weights: original ↔ on disk in llava-hf folders ↔ in memory."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from llava_patch.classes import Config, Model

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
PROJECTOR_SECOND = "multi_modal_projector.linear_2."
TOWER = "vision_tower."
"""Prefixes on disk."""


def translate(names: list[str], where: Path) -> dict[str, str]:
    """Original names of weights → {name on disk in transformers' layout: original name}. ValueError: unknown name."""
    return _translate(names, NAMES, BUFFERS, where)


def translate_tower(names: list[str], where: Path) -> dict[str, str]:
    """The same for a CLIP folder, with or without its text half."""
    wanted = [name for name in names if not TEXT_HALF.search(name)]
    return _translate(wanted, TOWER_NAMES, BUFFERS, where)


def expected(config: Config) -> dict[str, tuple[int, ...]]:
    """Name on disk → shape, of every weight of a LLaVA of this config."""
    with torch.device("meta"):
        state = Model(config).state_dict()
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
