"""A checkpoint without its weights: what the folder is, its config, and the model's shapes on the meta device.

A 7B model is described in a second and without a gigabyte: weights are known by the headers of their files. The
comparison of names and shapes is transformers' own, fed with tensors that have a shape and no numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llava_patch import weights as stored_weights
from safevlm.backbones import config_facts
from safevlm.config import ModelConfig, SafetyConfig
from safevlm.model import checkpoint_folder, families, loading
from safevlm.model.checkpoint_folder import ADAPTER_FILE, BROKEN, SAFETY_FILE, Kind
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import start

FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
"""Files of weights in the order in which transformers looks for them."""
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of types; others are no weights that LLaVA has."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder as `loading.load` would see it, with the recipe's safety modules and labels."""

    folder: Path
    kind: Kind
    weights: Path
    """Folder with the LLM's weights: the same, or the base's."""
    config: Any
    """Of ours, whatever the family."""


def read(model: ModelConfig, *, trains: bool = True) -> Checkpoint:
    """ValueError: no such folder, not a LLaVA, a base that is not there, a taxonomy that does not fit."""
    folder = checkpoint_folder.resolve(model.path)
    kind = checkpoint_folder.kind_of(folder)
    if trains and kind == "adapter":
        raise ValueError(f"{folder}: has a LoRA already; merge it first: safevlm merge {folder} --out DIR")
    safety, policy = start.labels(model.taxonomy, model.safety)
    config = checkpoint_folder.config_of(folder, kind, safety if trains else None)
    if model.taxonomy:
        start.adopt(config, safety.taxonomy, policy, model.taxonomy)
    weights = checkpoint_folder.weights_folder(folder, kind, config, model.base)
    return Checkpoint(folder.resolve(), kind, weights.resolve(), config)


def of_folder(path: str | Path, base: str | None = None) -> Checkpoint:
    """A checkpoint that nobody is going to train."""
    return read(ModelConfig(str(path), SafetyConfig(), base), trains=False)


def skeleton(config: Any, *, layers: int | None = None) -> Any:
    """The model on the meta device: names and shapes, no numbers. `layers`: so many of the LLM's; none: all."""
    config = copy.deepcopy(config)
    if layers is not None:
        config_facts.set_lm_layers(config, min(layers, config_facts.lm_layers(config)))
    with torch.device("meta"):
        return families.classes_of(config).model(config)


def safety_state(model: nn.Module) -> dict[str, Tensor]:
    """All safety weights and buffers by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_safety_name(name)}


def incomplete(checkpoint: Checkpoint) -> Iterator[str]:
    """What keeps the stored weights from filling the model; nothing when they are complete."""
    weights, config = checkpoint.weights, checkpoint.config
    differences = _compare(stored(weights), config)
    if checkpoint.kind != "full":  # new safety modules are drawn, or lie in a file of their own
        differences["missing"] -= {name for name in differences["missing"] if is_safety_name(name)}
        differences["unexpected"] -= {name for name in differences["unexpected"] if is_safety_name(name)}
    yield from _told(weights, differences)
    if checkpoint.kind in ("safety", "adapter"):
        ours = safety_state(skeleton(config, layers=0))
        file = checkpoint.folder / SAFETY_FILE
        yield from _told(file, _differences(_header(file), ours))
    if checkpoint.kind == "adapter":
        file = checkpoint.folder / ADAPTER_FILE
        yield from _told(file, _differences(_header(file), _adapter(checkpoint)))


def stored(folder: Path) -> dict[str, Tensor]:
    """The folder's weights on the meta device, by their names on disk. ValueError: missing or truncated."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder}: no weights here; one of {list(FILES)} is needed")
    tensors: dict[str, Tensor] = {}
    for file in _shards(found):
        tensors |= _header(file) if file.suffix == ".safetensors" else _pickled(file)
    return tensors


def stored_bytes(folder: Path) -> dict[str, int]:
    """Size of the folder's weights by type."""
    sizes: dict[str, int] = {}
    for tensor in stored(folder).values():
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.numel() * tensor.element_size()
    return sizes


def _shards(file: Path) -> list[Path]:
    return stored_weights.shards(file) if file.suffix == ".json" else [file]


def _header(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file}: missing; the checkpoint is incomplete")
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {
                name: torch.empty(one.get_shape(), dtype=TYPES.get(one.get_dtype(), torch.float32), device="meta")
                for name, one in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: broken or truncated, cannot be loaded: {error}") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        table = torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except BROKEN as error:
        raise ValueError(f"{file}: broken or truncated, cannot be loaded: {str(error).splitlines()[0]}") from error
    return dict(table)


def _compare(tensors: dict[str, Tensor], config: Any) -> dict[str, set[str]]:
    with loading.quiet():
        made = families.classes_of(config).model.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _, info = cast("tuple[Any, dict[str, Any]]", made)  # for output_loading_info
    return {
        "missing": set(info["missing_keys"]),
        "unexpected": set(info["unexpected_keys"]),
        "of another shape": {key[0] for key in info["mismatched_keys"]},
    }


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, set[str]]:
    both = set(found) & set(wanted)
    return {
        "missing": set(wanted) - set(found),
        "unexpected": set(found) - set(wanted),
        "of another shape": {name for name in both if found[name].shape != wanted[name].shape},
    }


def _told(place: Path, differences: dict[str, set[str]]) -> Iterator[str]:
    for what, names in differences.items():
        if names:
            yield f"{place}: {len(names)} weights {what}: {', '.join(sorted(names)[:3])}"


def _adapter(checkpoint: Checkpoint) -> dict[str, Any]:
    """Names and shapes of the LoRA that adapter_config.json describes."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = LoraConfig.from_pretrained(str(checkpoint.folder))
    config.base_model_name_or_path = None  # else PEFT warns that the skeleton has another name
    with torch.device("meta"):
        wrapped = get_peft_model(skeleton(checkpoint.config), config)
    return get_peft_model_state_dict(wrapped)
