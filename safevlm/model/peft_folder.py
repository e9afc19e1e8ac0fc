"""LoRAs that other tools made (TRL, ms-swift, LLaMA-Factory) on a llava-hf model: PEFT folders without a config.json.

Which layers an adapter sits on is told by the names of its weights, never by `target_modules`: that may be a pattern of
an older naming, or `q_proj`, which would fit the vision tower too. Nothing but numbers is taken from
adapter_config.json, so that it can name no class or library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_patch import names, weights
from safevlm.files import checked
from safevlm.model.checkpoint_folder import ADAPTER_CONFIG, BROKEN, CheckpointError, first_line
from safevlm.model.safe_llava import SafeLlava

FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
REST = r"lora_\w+(\.default)?(\.weight|\.bias)?|((modules_to_save|base_layer)\.)?(weight|bias)"
NAME = re.compile(rf"^(?P<module>.+?)\.(?P<rest>{REST})$")
COPY = "base_layer."
"""PEFT saves the embedding itself beside its LoRA."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that change the base's own weights too, which are not in the adapter."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is read of adapter_config.json."""

    lora_alpha: float
    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: Mapping[str, float] | None = None
    init_lora_weights: bool | str | None = None
    layer_replication: list[Any] | None = None
    trainable_token_indices: Any = None
    target_parameters: Any = None


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder is an adapter alone, and not a checkpoint of ours."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path, base: str | Path | None) -> Path:
    """The folder of the model that the adapter stands on. CheckpointError: nobody says where it is."""
    told = _config(folder).base_model_name_or_path
    place = Path(base or told or "")
    if not (base or (told and (place / "config.json").is_file())):
        named = f"its {ADAPTER_CONFIG} names {told!r}, which is no folder here" if told else "nothing names its base"
        raise CheckpointError(f"{folder}: a LoRA without its base model: {named}; say where it is with --base DIR")
    return place


def put_on(model: SafeLlava, folder: Path) -> Any:
    """The model with the adapter on it. CheckpointError: of another kind, for another model, or incomplete."""
    try:
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError as error:
        raise CheckpointError(f"{folder}: this is a LoRA; pip install -e '.[train]'") from error
    config = _config(folder)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: {' or '.join(FILES)} missing; the adapter is incomplete")
    tensors, sources = _renamed(file, model)
    adapted = {module for module, rest in map(_split, tensors) if rest.startswith("lora_")}
    whole = {module for module, _ in map(_split, tensors)} - adapted
    ranks = {module: _rank(module, tensors) for module in adapted}
    made = LoraConfig(
        r=max(ranks.values(), default=1),
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions, and says int
        target_modules=sorted(adapted),
        modules_to_save=sorted(whole) or None,
        rank_pattern={re.escape(module): rank for module, rank in ranks.items()},
        alpha_pattern={re.escape(module): _alpha(sources[module], config) for module in adapted},
        bias=config.bias,  # type: ignore[arg-type]  # PEFT checks it
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        fan_in_fan_out=config.fan_in_fan_out,
    )
    stored = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    try:
        wrapped = get_peft_model(model, made)
        set_peft_model_state_dict(wrapped, dict(stored))  # it may take entries out
        arrived = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except BROKEN as error:
        raise CheckpointError(f"{folder}: the LoRA cannot be put on this model: {first_line(error)}") from error
    if set(arrived) != set(stored) or any(not _equal(arrived[name], stored[name]) for name in stored):
        raise CheckpointError(f"{folder}: the LoRA did not arrive in the model; adapter and base do not fit")
    return wrapped.requires_grad_(False).eval()


def _config(folder: Path) -> AdapterConfig:
    file = folder / ADAPTER_CONFIG
    try:
        table = weights.read_table(file)
        known = {name: table[name] for name in (each.name for each in fields(AdapterConfig)) if name in table}
        config = checked(AdapterConfig, known, str(file))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    init = str(config.init_lora_weights).lower()
    problems = {
        f"peft_type {config.peft_type!r}; only LORA is read": config.peft_type != "LORA",
        f"lora_alpha {config.lora_alpha!r} is not a number above 0": not 0 < config.lora_alpha < float("inf"),
        f"init_lora_weights {init!r} changes the base's weights; convert it in the tool that made it "
        "(path_initial_model_for_weight_conversion), or merge it there": init.startswith(CHANGES_BASE),
        "layer_replication is not read": bool(config.layer_replication),
        "trainable_token_indices are not read": bool(config.trainable_token_indices),
        "target_parameters are not read": bool(config.target_parameters),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise CheckpointError(f"{file}: {problem}")
    return config


def _renamed(file: Path, model: SafeLlava) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by their names in this model, without the prefix; and each module's name in the file."""
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    try:
        stored = weights.Weights([file])
        for name in stored.names:
            told = NAME.match(name.removeprefix(PREFIX))
            module = names.module_of(told["module"], modules) if told else None
            if told is None or module is None:
                raise CheckpointError(f"{file}: weight {name!r} fits no layer of this model")
            rest = told["rest"].replace(".default", "").removeprefix("modules_to_save.")
            if rest.startswith(COPY):
                _check_copy(
                    modules[module].get_parameter(rest.removeprefix(COPY)), stored.read(name), f"{file}: {name}"
                )
                continue
            tensors[f"{module}.{rest}"], sources[module] = stored.read(name), told["module"]
    except BROKEN as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: broken or truncated, cannot be loaded: {first_line(error)}") from error
    bad = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if bad is not None or not tensors:
        raise CheckpointError(f"{file}: {f'{bad} holds values that are not finite' if bad else 'it holds no weight'}")
    return tensors, sources


def _check_copy(own: Tensor, copied: Tensor, where: str) -> None:
    """CheckpointError unless the base has the same embedding, up to the rounding of half precision."""
    if own.shape != copied.shape or not torch.allclose(
        own.float(), copied.to(own.device).float(), rtol=2**-7, atol=1e-6
    ):
        raise CheckpointError(f"{where} is another embedding than the base's, which this tool does not replace")


def _split(name: str) -> tuple[str, str]:
    found = NAME.match(name)
    assert found is not None  # `_renamed` has matched it
    return found["module"], found["rest"]


def _rank(module: str, tensors: Mapping[str, Tensor]) -> int:
    """Rows of A: (r, in), also of an embedding's."""
    for half in ("lora_A.weight", "lora_embedding_A"):
        if f"{module}.{half}" in tensors:
            return len(tensors[f"{module}.{half}"])
    raise CheckpointError(f"{module}: lora_A is missing; the adapter is incomplete")


def _alpha(source: str, config: AdapterConfig) -> float:
    """The layer's own alpha where a pattern fits its name in the file, by PEFT's rule, else the adapter's."""
    patterns = config.alpha_pattern or {}
    return next((alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", source)), config.lora_alpha)


def _equal(arrived: Tensor, stored: Tensor) -> bool:
    """PEFT keeps float32 of what was stored in half precision."""
    return arrived.shape == stored.shape and torch.equal(arrived.cpu().float(), stored.float())
