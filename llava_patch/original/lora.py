"""Folding a LoRA of the original code into its base, one weight at a time, in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_patch.weights import Weights

FILES = ("adapter_model.safetensors", "adapter_model.bin")
NAME = re.compile(r"^base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight$")
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, [], ()),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
}
"""Fields of adapter_config.json and the values that mean: nothing but two matrices per layer."""


@dataclass(frozen=True)
class Lora:
    """An adapter on disk."""

    weights: Weights
    pairs: Mapping[str, tuple[str, str]]
    """Name of the base's weight, in the original's naming → names of A (r, in) and B (out, r)."""
    alpha: float
    rank_stabilized: bool
    transposed: bool
    """Weights are (in, out), as in a Conv1D."""

    def fold(self, target: str, weight: Tensor) -> Tensor:
        """The base's weight with its update, in float32; ValueError when they do not fit."""
        down, up = (self.weights.read(name).float() for name in self.pairs[target])
        rank = down.shape[0]
        update = up @ down * (self.alpha / (rank**0.5 if self.rank_stabilized else rank))
        update = update.T if self.transposed else update
        if update.shape != weight.shape:
            raise ValueError(f"the LoRA on {target} is {tuple(update.shape)}, its weight {tuple(weight.shape)}")
        return weight.float() + update


def read(folder: Path, config: Mapping[str, Any]) -> Lora:
    """The adapter of a folder; `config` is its adapter_config.json. ValueError: of another kind, or half of one."""
    where = folder / "adapter_config.json"
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise ValueError(f"{where}: {key} {config[key]!r} cannot be folded; only {plain[0]!r}")
    if not config.get("lora_alpha"):
        raise ValueError(f"{where}: lora_alpha is missing")
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: {' or '.join(FILES)} missing; the LoRA is incomplete")
    stored = Weights([file])
    return Lora(
        weights=stored,
        pairs=_pairs(stored, file),
        alpha=float(config["lora_alpha"]),
        rank_stabilized=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
    )


def _pairs(stored: Weights, file: Path) -> dict[str, tuple[str, str]]:
    halves: dict[str, dict[str, str]] = {}
    for name in stored.names:
        found = NAME.match(name)
        if found is None:
            raise ValueError(f"{file}: weight {name!r} is unexpected; only lora_A and lora_B of linear layers")
        halves.setdefault(f"{found[1]}.weight", {})[found[2]] = name
    single = sorted(target for target, pair in halves.items() if set(pair) != {"A", "B"})
    if single or not halves:
        raise ValueError(f"{file}: lora_A or lora_B missing of {single[:3] or 'every layer'}; the LoRA is incomplete")
    return {target: (pair["A"], pair["B"]) for target, pair in halves.items()}
