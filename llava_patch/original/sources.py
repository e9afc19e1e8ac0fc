"""Where every weight of a converted LLaVA comes from: the folder itself, its base, its vision tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import CLIPConfig, CLIPVisionConfig

from llava_patch import weights
from llava_patch.original import config as configs
from llava_patch.original import folder as folders
from llava_patch.original import lora, names, vocabulary

REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
PUBLISHED = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
"""A published model's name, with or without its owner; no path of somebody's disk begins like that."""
GET_CLIP = "hf download {name} --local-dir DIR"


Places = dict[str, tuple[weights.Stored, str]]
"""Name on disk of a weight → where it is read, and its name there."""


@dataclass(frozen=True)
class Sources:
    """Where every weight comes from, and the tables of the folders involved."""

    kind: folders.Kind
    folder: Path
    table: Mapping[str, Any]
    """The LLaVA's config.json."""
    text: Mapping[str, Any]
    """The config.json that describes the LLM."""
    text_folder: Path
    tower: Path | None
    layers: tuple[tuple[weights.Weights, Mapping[str, str]], ...]
    """Weights and {name on disk: their own name}; the later overrides the earlier."""
    adapter: lora.Lora | None

    def places(self) -> Places:
        """Every weight under its name on disk; of two of one name, that of the later layer."""
        return {target: (stored, name) for stored, own in self.layers for target, name in own.items()}


def find(folder: Path, base: Path | None, tower: Path | None) -> Sources:
    """Where the weights of an original folder lie. ValueError, naming the flag or the command that helps.

    `base`: the LLM's folder, for a `projector` or `lora` folder only; `tower`: a CLIP folder, where the config's is not
    here.
    """
    table = folders.read_config(folder, "SRC")
    if not folders.is_original(table):
        raise ValueError(f"{folder}: {folders.what_else(table)}")
    kind = folders.kind_of(folder)
    if kind == "full" and base is not None:
        raise ValueError(f"--base {base}: {folder} holds the whole LLM; leave --base out")
    if kind != "full" and base is None:
        raise ValueError(
            f"{folder}: this is a {kind} folder without its LLM; say where that is with --base DIR "
            f"(hf download {_base_name(folder, table)} --local-dir DIR)"
        )
    text_folder = base or folder
    text = folders.read_config(text_folder, "--base")
    if kind == "lora":
        _check_base_name(folder, text_folder, text)
    configs.text_config(text, text_folder / "config.json")
    tower = tower or _named_tower(table)
    layers = _tower_layers(tower) + [_layer(weights.of_folder(text_folder), text_folder)]
    layers += [_layer(weights.Weights([file]), file) for file in _own_files(folder, kind)]
    adapter = _adapter(folder) if kind == "lora" else None
    return Sources(kind, folder, table, text, text_folder, tower, tuple(layers), adapter)


def _base_name(folder: Path, table: Mapping[str, Any]) -> str:
    """The base to fetch: what the folder itself says, if that can be fetched and is no path of its maker's."""
    file = folder / folders.ADAPTER_CONFIG
    adapter = weights.read_table(file) if file.is_file() else {}
    said = (adapter.get("base_model_name_or_path"), table.get("_name_or_path"), "lmsys/vicuna-7b-v1.5")
    return next(str(name) for name in said if REPOSITORY.fullmatch(str(name)))


def _check_base_name(folder: Path, base: Path, text: Mapping[str, Any]) -> None:
    """ValueError: the LoRA names one published model as its base, and the base's own config calls itself another.

    An original LoRA has no other trace of its base; paths on somebody's disk say nothing and are passed by.
    """
    wanted = str(weights.read_table(folder / folders.ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    own = str(text.get("_name_or_path") or "")
    if not (REPOSITORY.fullmatch(wanted) and PUBLISHED.fullmatch(own)):
        return
    if wanted.rpartition("/")[2].lower() != own.rpartition("/")[2].lower():
        raise ValueError(
            f"--base {base}: this is {own} by its config.json, and the LoRA of {folder} was trained on {wanted}; give "
            f"that one (hf download {wanted} --local-dir DIR), or, if they are one, say so in its adapter_config.json"
        )


def _own_files(folder: Path, kind: folders.Kind) -> list[Path]:
    """Files with weights of SRC itself that come on top of the base."""
    own: dict[folders.Kind, list[str]] = {"full": [], "projector": [folders.PROJECTOR], "lora": [folders.NON_LORA]}
    files = [folder / name for name in own[kind]]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing; it holds the projector that was trained with the LoRA")
    return files


def _layer(stored: weights.Weights, where: Path) -> tuple[weights.Weights, Mapping[str, str]]:
    return stored, names.translate(stored.names, where)


def _named_tower(table: Mapping[str, Any]) -> Path | None:
    """The folder that the config itself names, if it lies here."""
    name = table.get("mm_vision_tower")
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


def _tower_layers(tower: Path | None) -> list[tuple[weights.Weights, Mapping[str, str]]]:
    """The tower's weights, below all others: a tower that was tuned with the LLaVA wins. A folder may have none."""
    if tower is None or weights.find(tower) is None:
        return []
    stored = weights.of_folder(tower)
    return [(stored, names.translate_tower(stored.names, tower))]


def _adapter(folder: Path) -> lora.Lora:
    return lora.read(folder, weights.read_table(folder / folders.ADAPTER_CONFIG))


def tokenizer_folder(sources: Sources, asked: Path | None) -> Path:
    """Where the tokenizer is: where asked, else in the folder itself, else beside the LLM."""
    if asked is not None:
        return asked
    own = sources.folder
    return own if (own / vocabulary.MODEL_FILE).is_file() else sources.text_folder


def tower_config(sources: Sources) -> CLIPVisionConfig:
    """The tower's config, from its folder or its name. ValueError: neither is enough."""
    if sources.tower is None:
        known = configs.known_tower(sources.table)
        if known is None:
            raise ValueError(f"{sources.folder}: {fetch_tower(sources)}")
        return known
    table = folders.read_config(sources.tower, "--vision-tower")
    if table.get("model_type") == CLIPConfig.model_type:
        return cast(CLIPVisionConfig, CLIPConfig.from_dict(dict(table)).vision_config)
    if table.get("model_type") == CLIPVisionConfig.model_type:
        return CLIPVisionConfig.from_dict(dict(table))
    raise ValueError(f"{sources.tower}: model_type {table.get('model_type')!r} is no CLIP; {fetch_tower(sources)}")


def fetch_tower(sources: Sources) -> str:
    """How to get the vision tower, for error messages."""
    name = sources.table.get("mm_vision_tower", "openai/clip-vit-large-patch14-336")
    return f"its vision tower is {name}; say where that is with --vision-tower DIR ({GET_CLIP.format(name=name)})"
