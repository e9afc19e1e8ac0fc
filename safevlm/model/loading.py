"""Checkpoint folders: what one is, and how it is loaded.

| kind      | told by                                    | weights                                                   |
|-----------|--------------------------------------------|-----------------------------------------------------------|
| `stock`   | config.json: model_type llava              | complete                                                  |
| `full`    | config.json: model_type safe_llava         | complete, ours included                                   |
| `safety`  | the same, with `base_checkpoint`           | ours in safety.safetensors, the rest in the base          |
| `adapter` | adapter_config.json beside it              | as `safety`, and a LoRA in adapter_model.safetensors      |
| `guarded` | a stock config.json, and `safety/` with ours | complete, without ours; ours in safety/safety.safetensors |

A folder's name never matters, nor where it lies. Loading is strict: a weight that is missing, left over or of another
shape is an error; only the safety modules may be missing, and only from a checkpoint that has none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor
from transformers.utils import logging as transformers_logging

from llava_patch import fields, names
from llava_patch.classes import Config, Processor
from llava_patch.original.folder import is_original
from llava_patch.processor import make_room
from safevlm.config import Quantization, SafetyConfig
from safevlm.data.chat import CHAT_TEMPLATE
from safevlm.model import export, quantization, zero3
from safevlm.model.export import SAFETY_FILE, SIDECAR
from safevlm.model.safe_llava import NO_SAFETY, SafeLlava, SafeLlavaConfig, is_safety_name

Kind = Literal["stock", "full", "safety", "adapter", "guarded"]
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
FINAL = "final"
"""Where a training run puts its result."""


BROKEN = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, pickle.UnpicklingError)
"""What reading a damaged or foreign folder can raise."""


class CheckpointError(ValueError):
    """A folder that cannot be loaded; the message names it and the fix."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    model: Any
    """SafeLlava, or a PeftModel around one (kind `adapter`)."""
    processor: Processor
    kind: Kind
    path: Path
    base: Path
    """Folder that holds the LLM's weights."""
    ours: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Safety weights by name as they came, whole, float32, on the CPU; live ones may be cut or rounded by DeepSpeed."""

    @property
    def safe_llava(self) -> SafeLlava:
        return inner_of(self.model)


def inner_of(model: Any) -> SafeLlava:
    """The SafeLlava in a PeftModel; a wrapped one has a `peft_config` too, so that does not tell them apart."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def resolve(path: str | Path) -> Path:
    """The folder itself, or `final` inside a training run's folder. CheckpointError when neither has a config."""
    folder = Path(path)
    for candidate in (folder, folder / FINAL):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: no such folder; to fetch LLaVA: hf download llava-hf/llava-1.5-7b-hf --local-dir DIR"
        )
    raise CheckpointError(f"{folder}: no config.json here, nor in {FINAL}/; give the folder of a checkpoint")


def kind_of(folder: Path) -> Kind:
    """What a folder is, from its contents alone."""
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if is_original(config):
        raise CheckpointError(
            f"{folder}: this is an original LLaVA-v1.5 folder; convert it first: safevlm convert {folder} --out DIR"
        )
    if model_type == names.MODEL_TYPE:
        return "guarded" if export.has_sidecar(folder) else "stock"
    if model_type != SafeLlavaConfig.model_type:
        known = [names.MODEL_TYPE, SafeLlavaConfig.model_type]
        raise CheckpointError(f"{folder}: model_type {model_type!r} is not a LLaVA this tool can load; one of {known}")
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    return "safety" if config.get("base_checkpoint") else "full"


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def default_device(device: str, flag: str = "--device") -> torch.device:
    """`auto` → the GPU if there is one. ValueError, naming the flag, when a GPU is asked for and there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no GPU here; use {flag} cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: {_first_line(error)}") from error


def load(
    path: str | Path,
    *,
    safety: SafetyConfig | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    lm: bool = True,
    quantize: Quantization = "none",
    device: torch.device | None = None,
    guard: bool = True,
) -> Loaded:
    """Loads any kind of folder, on the CPU, in evaluation mode.

    `safety` adds safety modules to a checkpoint that has none (others keep their own); `base` says where the base
    lies if it has moved. `dtype` is the frozen weights' type; safety modules and adapters are float32 always, except
    under ZeRO-3, which cuts the model across processes and wants one type. `lm` False leaves the LLM's layers on the
    disk: looking and judging work, answering does not. `quantize` packs those layers on `device` (none: the CPU), where
    the whole model then lies. `guard` False takes a `guarded` folder for the stock model that it holds.
    CheckpointError: no such folder, not a LLaVA, missing or unexpected weights, base not found.
    """
    how = {"safety": safety, "base": base, "dtype": dtype, "attention": attention, "lm": lm, "guard": guard}
    how |= {"packing": quantization.arguments(quantize if lm else "none", dtype, device)}
    if not zero3.is_planned():
        return _load(path, **how)
    with zero3.off():
        entire = _load(path, **{**how, "lm": False})
    random_state = torch.get_rng_state()
    loaded = _load(path, **how)
    # new weights and the random state after them are those of a load in one process, whatever ZeRO-3 drew
    zero3.write(loaded.safe_llava, entire.ours)
    torch.set_rng_state(random_state)
    return replace(loaded, ours=entire.ours)


def _load(
    path: str | Path,
    *,
    safety: SafetyConfig | None,
    base: str | Path | None,
    dtype: torch.dtype,
    attention: str,
    lm: bool,
    guard: bool,
    packing: dict[str, Any],
) -> Loaded:
    folder = resolve(path)
    kind = kind_of(folder)
    kind = "stock" if kind == "guarded" and not guard else kind
    config = config_of(folder, kind, safety)
    weights = folder if kind in ("stock", "full", "guarded") else base_of(folder, config, base)
    model = _load_base(weights, config, dtype, attention, lm, packing, ours_may_be_missing=kind != "full")
    for name, parameter in model.named_parameters():
        if is_safety_name(name) and not zero3.is_cut(parameter):
            parameter.data = parameter.data.float()  # before they are read, else they are rounded to `dtype`
    if kind in ("safety", "adapter", "guarded"):
        _load_safety(model, (folder / SIDECAR if kind == "guarded" else folder) / SAFETY_FILE)
    elif kind == "full" and dtype != torch.float32:
        _fill_safety(model, _safety_tensors(folder), folder)
    model.config.base_checkpoint = None  # in memory the model is whole; `saving` notes its base again
    processor = load_processor(folder, config)
    ours = {name: tensor for name, tensor in model.state_dict().items() if is_safety_name(name)}
    wrapped = _load_adapter(model, folder) if kind == "adapter" and lm else model
    return Loaded(wrapped.eval(), processor, kind, folder.resolve(), weights.resolve(), ours)


def load_processor(folder: Path, config: SafeLlavaConfig) -> Processor:
    """The folder's processor, with room for the model's tokens and our chat template."""
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: the processor cannot be loaded: {_first_line(error)}") from error
    processor.chat_template = CHAT_TEMPLATE
    return make_room(processor, config, config.safety_config.lm_tokens)


def restore(model: Any, folder: Path) -> None:
    """Reads a checkpoint of ours back into the live model it was saved from."""
    inner = inner_of(model)
    _load_safety(inner, folder / SAFETY_FILE)
    if model is not inner:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE))
        _check_adapter(model, folder)


def config_of(folder: Path, kind: Kind, safety: SafetyConfig | None) -> SafeLlavaConfig:
    try:
        config = AutoConfig.from_pretrained(folder)
        _ = fields.text(config) if kind in ("stock", "guarded") else config.taxonomy  # reads the safety section
    except BROKEN as error:
        raise CheckpointError(f"{folder / 'config.json'}: cannot be used: {_first_line(error)}") from error
    if kind == "guarded":
        return _guarded_config(folder, config)
    return SafeLlavaConfig.from_llava(config, safety or NO_SAFETY) if kind == "stock" else config


def _guarded_config(folder: Path, config: Config) -> SafeLlavaConfig:
    try:
        guarded = export.config_of(config, export.read_sidecar(folder))
        _ = guarded.taxonomy
    except BROKEN as error:
        raise CheckpointError(_first_line(error)) from error
    return guarded


def base_of(folder: Path, config: SafeLlavaConfig, base: str | Path | None) -> Path:
    place = Path(base) if base else Path(config.base_checkpoint or "")
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{folder}: its base model is not at {place}; say where it is with --base DIR")
    return place


def _load_base(
    folder: Path,
    config: SafeLlavaConfig,
    dtype: torch.dtype,
    attention: str,
    lm: bool,
    packing: dict[str, Any],
    ours_may_be_missing: bool,
) -> SafeLlava:
    layers = fields.lm_layers(config)
    with quiet(), fields.with_lm_layers(config, layers if lm else 0):
        try:
            model, info = SafeLlava.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **packing,
            )
        except BROKEN as error:
            raise CheckpointError(f"{folder}: the weights cannot be loaded: {_first_line(error)}") from error
    quantization.settle(model, packing)
    fields.set_lm_layers(model.config, layers)  # what `saving` writes; `SafeLlava.forward` counts layers

    def may_be_missing(name: str) -> bool:
        return ours_may_be_missing and is_safety_name(name)

    def may_be_left(name: str) -> bool:
        return may_be_missing(name) or (not lm and name.startswith(names.LM_LAYERS))

    problems = {
        "missing": {name for name in info["missing_keys"] if not may_be_missing(name)},
        "unexpected": {name for name in info["unexpected_keys"] if not may_be_left(name)},
        "of another shape": {key[0] for key in info["mismatched_keys"]},
    }
    for what, wrong in problems.items():
        if wrong:
            shown = ", ".join(sorted(wrong)[:3])
            raise CheckpointError(f"{folder}: {len(wrong)} weights {what} ({shown}); the checkpoint is incomplete")
    return model


def _load_safety(model: SafeLlava, file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; the checkpoint is incomplete")
    _fill_safety(model, read_tensors(file), file)


def _safety_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Ours among the weights of a `full` folder, as they are stored."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            keys = stored.keys()
            found |= {name: stored.get_tensor(name) for name in keys if is_safety_name(name)}
    return found


def _fill_safety(model: SafeLlava, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    ours = {name for name in model.state_dict() if is_safety_name(name)}
    if set(tensors) != ours:
        differing = sorted(set(tensors) ^ ours)
        raise CheckpointError(f"{file}: weights do not fit config.json: {differing[:3]} ({len(differing)} in all)")
    if any(zero3.is_cut(parameter) for parameter in model.parameters()):
        zero3.write(model, tensors)
        return
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # its first line only says that there are more
        raise CheckpointError(f"{file}: {str(error).strip().splitlines()[-1].strip()}") from error


def _load_adapter(model: SafeLlava, folder: Path) -> Any:
    """Puts the LoRA on and compares what arrived with the file: PEFT goes on with the bare base otherwise."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(f"{folder}: this checkpoint has a LoRA; pip install 'safevlm[train]'") from error
    if not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{folder / ADAPTER_FILE}: missing; the checkpoint is incomplete")
    try:
        wrapped = PeftModel.from_pretrained(model, folder)
    except BROKEN as error:
        raise CheckpointError(f"{folder}: the LoRA cannot be loaded: {_first_line(error)}") from error
    _check_adapter(wrapped, folder)
    return wrapped


def _check_adapter(wrapped: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    arrived, stored = get_peft_model_state_dict(wrapped), load_file(folder / ADAPTER_FILE)
    if set(arrived) != set(stored) or any(not torch.equal(arrived[name].cpu(), stored[name]) for name in stored):
        raise CheckpointError(f"{folder}: the LoRA did not arrive in the model; adapter and base do not fit")


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: broken or truncated, cannot be loaded: {_first_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}:{error.lineno}: malformed JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text: {error}") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not a {type(table).__name__}")
    return table


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers prints a table of missing weights and a bar; what matters of it is checked and raised here."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
