"""What an original folder is, told by its contents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llava_patch import weights

Kind = Literal["full", "projector", "lora"]
MODEL_TYPES = ("llava", "llava_llama")
ADAPTER_CONFIG, NON_LORA, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"


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


def read_config(folder: Path, flag: str) -> Mapping[str, Any]:
    """The folder's config.json. ValueError, naming the flag that gave the folder: no such folder, no config."""
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{flag} {folder}: no config.json here; what the folder holds cannot be told")
    return weights.read_table(folder / "config.json")


def what_else(table: Mapping[str, Any]) -> str:
    """Why a folder with this config is no original LLaVA, and what to do with it."""
    if "text_config" in table:
        return "in transformers' layout already; use it as it is, no conversion is needed"
    if table.get("model_type") == "llama":
        return "a language model, not a LLaVA; give the LLaVA folder as SRC and this one as --base"
    return f"model_type {table.get('model_type')!r} is not an original LLaVA-v1.5 on a Llama"
