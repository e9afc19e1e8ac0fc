"""What a checkpoint folder is.

| kind      | told by                                    | weights                                                   |
|-----------|--------------------------------------------|-----------------------------------------------------------|
| `stock`   | config.json: model_type of a family        | complete                                                  |
| `full`    | config.json: the same with safe_ in front  | complete, ours included                                   |
| `safety`  | the same, with `base_checkpoint`           | ours in safety.safetensors, the rest in the base          |
| `adapter` | adapter_config.json beside it              | as `safety`, and a LoRA in adapter_model.safetensors      |
| `guarded` | a stock config.json, and `safety/` with ours | complete, without ours; ours in safety/safety.safetensors |

A folder's name never matters, nor where it lies.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers import AutoConfig

from llava_patch.classes import Config
from llava_patch.original.folder import is_original
from llava_patch.pretrained import ForeignCodeError, from_folder
from safevlm import files
from safevlm.backbones import config_facts
from safevlm.config import SafetyConfig
from safevlm.model import export, families
from safevlm.model.safe_llava import SafeLlavaConfig
from safevlm.model.safety_section import NO_SAFETY

Kind = Literal["stock", "full", "safety", "adapter", "guarded"]
COMPLETE: tuple[Kind, ...] = ("stock", "full", "guarded")
"""Kinds that hold the LLM's weights themselves."""
SAFETY_FILE = export.SAFETY_FILE
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
FINAL = "final"
"""Where a training run puts its result."""
BROKEN = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, pickle.UnpicklingError)
"""What reading a damaged or foreign folder can raise."""
NUMBERS = {
    "generation_config.json": ("bos_token_id", "eos_token_id", "pad_token_id"),
    "tokenizer_config.json": ("model_max_length",),
}
"""Keys that hold a number, or a list of them."""


class CheckpointError(ValueError):
    """A folder that cannot be loaded; the message names it and the fix."""


def resolve(path: str | Path) -> Path:
    """The folder itself, or `final` inside a training run's folder. CheckpointError when neither has a config."""
    folder = Path(path)
    for candidate in (folder, folder / FINAL):
        if (candidate / "config.json").is_file():
            check_readable(candidate)
            check_values(candidate)
            return candidate
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: no such folder; the miniature is checkpoints/miniature of the clone; to fetch LLaVA: "
            "hf download llava-hf/llava-1.5-7b-hf --local-dir DIR"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: a LoRA alone; chat, eval and merge take it with --base DIR; for all else merge it first: "
            f"safevlm merge {folder} --base DIR --out DIR"
        )
    raise CheckpointError(f"{folder}: no config.json here, nor in {FINAL}/; give the folder of a checkpoint")


def check_readable(folder: Path) -> None:
    """CheckpointError: a file that may not be read. The libraries that read weights say that there is no such file."""
    for file in sorted(folder.iterdir()):
        try:
            if file.is_file():
                file.open("rb").close()
        except PermissionError as error:
            raise CheckpointError(f"{file}: permission denied; let its owner open it: chmod a+r {file}") from error


def check_values(folder: Path) -> None:
    """CheckpointError: a number that is none in a file beside config.json, which would stop only the first answer."""
    for name, keys in NUMBERS.items():
        file = folder / name
        table = _read_table(file) if file.is_file() else {}
        for key in keys:
            value = table.get(key)
            numbers = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
                raise CheckpointError(f"{file}: {key}: {value!r} is not a number")


def kind_of(folder: Path) -> Kind:
    """What a folder is, from its contents alone."""
    config = _read_table(folder / "config.json")
    model_type = config.get("model_type")
    if is_original(config):
        raise CheckpointError(
            f"{folder}: this is an original LLaVA-v1.5 folder; convert it first: safevlm convert {folder} --out DIR"
        )
    if not isinstance(model_type, str) or not families.is_known(model_type):
        known = ", ".join(families.known())
        raise CheckpointError(
            f"{folder}: model_type {model_type!r} is no family that this tool can load; one of {known}"
        )
    if not families.is_ours(model_type):
        return "guarded" if export.has_sidecar(folder) else "stock"
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    return "safety" if config.get("base_checkpoint") else "full"


def config_of(folder: Path, kind: Kind, safety: SafetyConfig | None) -> SafeLlavaConfig:
    """The model's config; of a stock folder with a safety section from `safety`. CheckpointError: broken or foreign."""
    _check_sections(folder / "config.json")
    try:
        config = from_folder(AutoConfig, folder)
        _ = config_facts.text(config) if kind in ("stock", "guarded") else config.taxonomy  # reads the safety section
    except ForeignCodeError as error:  # names its own file
        raise CheckpointError(str(error)) from error
    except BROKEN as error:
        raise CheckpointError(f"{folder / 'config.json'}: cannot be used: {first_line(error)}") from error
    if kind == "guarded":
        return _guarded_config(folder, config)
    if kind == "adapter":
        check_adapter(folder / ADAPTER_CONFIG, config)
    return families.classes_of(config).config.from_stock(config, safety or NO_SAFETY) if kind == "stock" else config


def check_adapter(file: Path, config: Config) -> None:
    """CheckpointError: an adapter_config.json with a number that is none, or with tokens that the model has no row for.

    PEFT takes the first as it is, and ends in an IndexError on the second. Nor may it be anything but a LoRA, or name
    a library: of other kinds PEFT loads tokenizers, and it imports what `megatron_core` says.
    """
    table, rows = _read_table(file), config_facts.vocabulary_size(config)
    if table.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type {table.get('peft_type')!r}; only LORA is read")
    if table.get("megatron_config"):
        raise CheckpointError(f"{file}: megatron_config is not read, nor is the library that it needs; take it out")
    for key in ("r", "lora_alpha"):
        value = table.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise CheckpointError(f"{file}: {key}: {value!r} is not a number above 0")
    name = table.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"{file}: base_model_name_or_path: {name!r} is not a text")
    tokens = table.get("trainable_token_indices") or []
    by_layer = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    listed = [token for own in by_layer for token in (own if isinstance(own, list) else [own])]
    wrong = next((token for token in listed if not isinstance(token, int) or not 0 <= token < rows), None)
    if wrong is not None:
        raise CheckpointError(
            f"{file}: trainable_token_indices: {wrong!r} is no token of this model, whose embedding has {rows} rows; "
            "the adapter belongs to another base"
        )


@dataclass(frozen=True)
class _Sections:
    """What is ours in a config.json."""

    safety: SafetyConfig | None = None
    policy: dict[str, Any] | None = None
    base_checkpoint: str | None = None


def _check_sections(file: Path) -> None:
    """CheckpointError, with the key, where a section of ours is of another shape than `SafeLlavaConfig` takes."""
    table = _read_table(file)
    ours = {field.name: table[field.name] for field in fields_of(_Sections) if field.name in table}
    try:
        files.checked(_Sections, ours, str(file))
    except files.FileError as error:
        raise CheckpointError(str(error)) from error


def _guarded_config(folder: Path, config: Any) -> Any:
    try:
        guarded = export.config_of(config, export.read_sidecar(folder))
        _ = guarded.taxonomy
    except BROKEN as error:
        raise CheckpointError(first_line(error)) from error
    return guarded


def weights_folder(folder: Path, kind: Kind, config: SafeLlavaConfig, base: str | Path | None) -> Path:
    """The folder with the LLM's weights: this one, or of an incomplete kind its base, `base` or where the config says.

    CheckpointError: there is no base there.
    """
    if kind in COMPLETE:
        return folder
    place = Path(base) if base else Path(config.base_checkpoint or "")
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{folder}: its base model is not at {place}; say where it is with --base DIR")
    check_readable(place)
    check_values(place)
    return place


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type: libraries add pages of advice."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read_table(file: Path) -> dict[str, Any]:
    try:
        return files.read_json(file, dict[str, Any])
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; the checkpoint is incomplete") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
