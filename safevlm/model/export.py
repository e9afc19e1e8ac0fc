"""A guarded checkpoint in two parts: a stock LLaVA that anybody can serve, and in it `safety/`, our guard's own files.

    DIR/          config.json (model_type llava), weights, processor, chat template: no key of ours anywhere
    DIR/safety/   config.json (safety section, taxonomy, policy), safety.safetensors, base.safetensors, README.md

Servers refuse weights that they do not know, so ours lie apart (base facts §7). The trap: a head reads the features of
one vision tower; in front of another tower of the same shape it judges at random, without an error. The sidecar
therefore knows its base by fingerprints (`safevlm.model.base_print`); those of before by a hash of its bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llava_patch import fingerprint as fingerprints
from llava_patch import names
from safevlm import files
from safevlm.config import SafetyConfig
from safevlm.model import base_print, families
from safevlm.model.safety_modules import is_safety_name

SIDECAR = "safety"
SAFETY_FILE = "safety.safetensors"
CONFIG_FILE = "config.json"
SIDECAR_TYPE = "safevlm_sidecar"
OURS = ("safety", "policy", "base_checkpoint", "model_type", "architectures", "transformers_version")
"""Fields of our config that a stock one must not have, or writes itself."""
README = """\
The guard of the model in the folder above: safety projector, head, tokens, taxonomy and policy (SafeVLM).
It fits that model only. `safevlm chat --model ..` puts it in front; servers that do not know it read past it.
"""


@dataclass(frozen=True)
class Sidecar:
    """What `safety/config.json` says."""

    safety: SafetyConfig
    policy: dict[str, Any] | None
    model_type: Literal["safevlm_sidecar"]
    base: str | None = None
    """Hash of the base, `fingerprint`; none: its fingerprints lie beside it (`safevlm.model.base_print`)."""


def has_sidecar(folder: Path) -> bool:
    """One file is enough: a guard that lost the other must be an error, not an unguarded model."""
    return any((folder / SIDECAR / name).is_file() for name in (SAFETY_FILE, CONFIG_FILE))


def read_sidecar(folder: Path) -> Sidecar:
    """The sidecar of a folder. ValueError when it is broken, or belongs to another base."""
    file = folder / SIDECAR / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{file}: missing; the guard is incomplete; export it again: safevlm merge … --stock")
    sidecar = files.read_json(file, Sidecar)
    if sidecar.base is None:
        if not (file.parent / base_print.FILE).is_file():
            raise ValueError(f"{file.parent / base_print.FILE}: missing; the guard is incomplete; export it again")
        return sidecar
    found = fingerprint(folder)
    if found != sidecar.base:
        raise ValueError(
            f"{file}: this guard belongs to another model: vision tower, projector or embeddings beside it are "
            f"not those that it was trained on ({found[:12]}, not {sidecar.base[:12]}); export both together: "
            "safevlm merge … --stock"
        )
    return sidecar


def config_of(stock: Any, sidecar: Sidecar) -> Any:
    """The stock config with the guard's sections."""
    config = families.classes_of(stock).config.from_stock(stock, sidecar.safety)
    config.policy = sidecar.policy
    return config


def write(model: Any, processor: Any, folder: Path, base: str) -> None:
    """Writes both parts into an existing folder; `base`: what to call the model in messages about it later.

    ValueError when the model has no safety modules.
    """
    ours = {name: tensor for name, tensor in model.state_dict().items() if is_safety_name(name)}
    if not ours:
        raise ValueError("--stock: this checkpoint has no safety modules, so there is nothing to put beside the model")
    _stock(model).save_pretrained(folder)
    families.processor_with_room(copy.deepcopy(processor), model.config, learned=0).save_pretrained(folder)
    sidecar = folder / SIDECAR
    sidecar.mkdir()
    save_file({name: tensor.float().contiguous() for name, tensor in ours.items()}, sidecar / SAFETY_FILE)
    table = {
        "model_type": SIDECAR_TYPE,
        "safety": model.config.safety,
        "policy": model.config.policy,
    }
    base_print.write(sidecar, base, fingerprints.of_folder(folder))
    (sidecar / CONFIG_FILE).write_text(json.dumps(table, indent=2, ensure_ascii=False), encoding="utf-8")
    (sidecar / "README.md").write_text(README, encoding="utf-8")


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights that the guard reads: names, types, shapes and bytes. A folder may move."""
    digest = hashlib.sha256()
    for name, tensor in _read_by_the_guard(folder):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_by_the_guard(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, one tensor in memory at a time; names start where all layouts agree."""
    places: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            keys = tensors.keys()
        places |= {key[found:]: (file, key) for key in keys if (found := _start(key)) is not None}
    missing = [part for part in names.GUARD_INPUTS if not any(part in name for name in places)]
    if missing:
        raise ValueError(f"{folder}: no weights of {missing} in *.safetensors; the checkpoint is incomplete")
    for name, (file, key) in sorted(places.items()):
        with safe_open(file, framework="pt") as tensors:
            yield name, tensors.get_tensor(key)


def _start(key: str) -> int | None:
    return next((key.index(part) for part in names.GUARD_INPUTS if part in key), None)


def _stock(model: Any) -> Any:
    """The stock class around the same tensors, without ours."""
    table = {key: value for key, value in model.config.to_dict().items() if key not in OURS}
    classes = families.stock_classes_of(model.config)
    with torch.device("meta"):
        stock = classes.model(classes.config(**table))
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_safety_name(name)}
    stock.load_state_dict(state, assign=True)
    stock.tie_weights()
    stock.generation_config = model.generation_config
    return stock
