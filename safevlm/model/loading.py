"""Checkpoint folders → models in memory.

Loading is strict: a weight that is missing, left over or of another shape is an error; only the safety modules may be
missing, and only from a checkpoint that has none. What a folder is: `safevlm.model.checkpoint_folder`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from llava_patch import fingerprint
from llava_patch.classes import Processor
from llava_patch.fingerprint import Fingerprints
from llava_patch.pretrained import from_folder
from safevlm.backbones import config_facts, processors
from safevlm.config import Quantization, SafetyConfig
from safevlm.data.chat import CHAT_TEMPLATE
from safevlm.model import base_print, checkpoint_folder, families, peft_folder, quantization, stored, zero3
from safevlm.model.checkpoint_folder import ADAPTER_FILE, BROKEN, SAFETY_FILE, CheckpointError, Kind, first_line
from safevlm.model.export import SIDECAR
from safevlm.model.layout import Layout
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig
from safevlm.model.safety_modules import is_safety_name


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
    base_fingerprints: Fingerprints = field(default_factory=dict)
    """Of the weights in `base`, as they lie on the disk; they go into every checkpoint that stands on it."""
    has_lm: bool = True
    """Whether the LLM's layers are in memory."""

    @property
    def safe_llava(self) -> Any:
        """The model itself, without the adapter's wrapper: a SafeLlava, or a SafeBackbone of another family."""
        return inner_of(self.model)


def inner_of(model: Any) -> Any:
    """The model in a PeftModel; a wrapped one has a `peft_config` too, so that does not tell them apart."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


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
        raise ValueError(f"device {device!r}: {first_line(error)}") from error


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
    disk: encoding and judging images work, answering does not. `quantize` packs those layers on `device` (none: the
    CPU), where the whole model then lies. A LoRA that another tool made needs its `base`, which is of any other kind;
    the guard is the base's. `guard` False takes a `guarded` folder for the stock model that it holds.
    CheckpointError: no such folder, not a LLaVA, missing or unexpected weights, base not found, or another base than
    the one that the folder was made for.
    """
    if peft_folder.is_peft_folder(Path(path)):
        below = load(
            peft_folder.base_of(Path(path), base),
            safety=safety,
            dtype=dtype,
            attention=attention,
            lm=lm,
            quantize=quantize,
            device=device,
            guard=guard,
        )
        if below.kind == "adapter":
            raise CheckpointError(
                f"{below.path}: has a LoRA already; merge it first: safevlm merge {below.path} --out DIR"
            )
        wrapped = peft_folder.put_on(below.model, Path(path)) if lm else below.model
        return replace(below, model=wrapped, kind="adapter", path=Path(path).resolve())
    quantization.check_possible(quantize if lm else "none")
    pack = functools.partial(quantization.arguments, quantize if lm else "none", dtype, device)
    read = functools.partial(
        _load, path, safety=safety, base=base, dtype=dtype, attention=attention, guard=guard, pack=pack
    )
    if not zero3.is_planned():
        return read(lm=lm, fingerprints=None)
    with zero3.off():
        entire = read(lm=False, fingerprints=None)
    random_state = torch.get_rng_state()
    loaded = read(lm=lm, fingerprints=entire.base_fingerprints)
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
    pack: Callable[[Layout], dict[str, Any]],
    fingerprints: Fingerprints | None,
) -> Loaded:
    """`pack`: a layout → what quantises it. `fingerprints` of the base, where it has been checked already."""
    folder = checkpoint_folder.resolve(path)
    kind = checkpoint_folder.kind_of(folder)
    kind = "stock" if kind == "guarded" and not guard else kind
    config = checkpoint_folder.config_of(folder, kind, safety)
    if lm:
        _check_answers(folder, config)
    weights = checkpoint_folder.weights_folder(folder, kind, config, base)
    fingerprints = fingerprints or check_base(folder, kind, weights)
    packing = pack(families.layout_of(config))
    model = _load_base(weights, config, dtype, attention, lm, packing, ours_may_be_missing=kind != "full")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if is_safety_name(name) and not zero3.is_cut(tensor):
            tensor.data = tensor.data.float()  # before they are read, else they are rounded to `dtype`
    if kind in ("safety", "adapter", "guarded"):
        stored.load_safety(model, (folder / SIDECAR if kind == "guarded" else folder) / SAFETY_FILE)
    elif kind == "full" and dtype != torch.float32:
        stored.fill_safety(model, stored.safety_tensors(folder), folder)
    model.config.base_checkpoint = None  # in memory the model is whole; `saving` notes its base again
    processor = load_processor(folder, config)
    ours = {name: tensor for name, tensor in model.state_dict().items() if is_safety_name(name)}
    stored.check_finite(ours, folder, "such a guard would refuse everything; the training failed, take an earlier one")
    wrapped = stored.load_adapter(model, folder) if kind == "adapter" and lm else model
    return Loaded(wrapped.eval(), processor, kind, folder.resolve(), weights.resolve(), ours, fingerprints, lm)


def _check_answers(folder: Path, config: Any) -> None:
    """CheckpointError: the family is only looked at, and somebody wants to load its LLM."""
    backbone = families.backbone_of(config)
    if backbone is not None and backbone.looks_only:
        raise CheckpointError(
            f"{folder}: {backbone.model_type} does not answer here: {backbone.looks_only}; train a head "
            "alone (vlm_stage1_head_only), audit images with it, or guard a server (safevlm serve --upstream URL)"
        )


def check_base(folder: Path, kind: Kind, weights: Path) -> Fingerprints:
    """The base's fingerprints. CheckpointError: it is not the one that a folder of ours was made for.

    They are taken from the files, so that neither ZeRO-3 nor a quantised LLM changes them.
    """
    try:
        found = fingerprint.of_folder(weights)
        if kind in ("safety", "adapter"):
            base_print.check(folder, weights, found)
        elif kind == "guarded":
            base_print.check_sidecar(folder, folder / SIDECAR, found)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return found


def load_processor(folder: Path, config: SafeLlavaConfig) -> Processor:
    """The folder's processor, with room for the model's tokens and our chat template."""
    backbone = families.backbone_of(config)
    try:
        processor = from_folder(AutoProcessor, folder) if backbone is None else processors.load(backbone, folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: the processor cannot be loaded: {first_line(error)}") from error
    tokens, rows = 1 + max(processor.tokenizer.get_vocab().values()), config_facts.vocabulary_size(config)
    rows += backbone.words_beyond if backbone is not None else 0
    if tokens > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer knows {tokens} tokens, and the model's embedding has {rows} rows; this is "
            "another model's tokenizer, or the embedding was never resized for it"
        )
    if backbone is not None:
        return processors.make_room(processor, config.safety_config.lm_tokens)
    if backbone is None:
        processor.chat_template = CHAT_TEMPLATE
    return families.processor_with_room(processor, config, config.safety_config.lm_tokens)


def restore(model: Any, folder: Path, start: Loaded) -> None:
    """Reads a checkpoint of ours, its LoRA too if it has one, back into the live model that it was saved from.

    `start`: what the live model was made of. CheckpointError: its base is not the one that the checkpoint was made on.
    """
    inner = inner_of(model)
    if start.base_fingerprints:
        try:
            base_print.check(folder, start.base, start.base_fingerprints)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    stored.load_safety(inner, folder / SAFETY_FILE)
    if model is not inner:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE))
        stored.check_adapter(model, folder)


def _load_base(
    folder: Path,
    config: SafeLlavaConfig,
    dtype: torch.dtype,
    attention: str,
    lm: bool,
    packing: dict[str, Any],
    ours_may_be_missing: bool,
) -> SafeLlava:
    with quiet(), config_facts.with_lm_layers(config, config_facts.lm_layers(config) if lm else 0):
        try:
            loaded: Any = from_folder(  # with loading info it is a pair
                families.classes_of(config).model,
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **packing,
            )
        except BROKEN as error:
            raise CheckpointError(f"{folder}: the weights cannot be loaded: {first_line(error)}") from error
    model: SafeLlava = loaded[0]
    quantization.settle(model, packing, families.layout_of(config))
    config_facts.copy_lm_layers(config, model.config)  # what `saving` writes; `SafeLlava.forward` counts layers
    _check_complete(loaded[1], folder, () if lm else families.layout_of(config).left_out, ours_may_be_missing)
    return model


def _check_complete(
    info: Mapping[str, Any], folder: Path, left_out: tuple[str, ...], ours_may_be_missing: bool
) -> None:
    """CheckpointError unless transformers found all weights and no other ones, but those that begin with `left_out`."""

    def may_be_missing(name: str) -> bool:
        return ours_may_be_missing and is_safety_name(name)

    def may_be_left(name: str) -> bool:
        return may_be_missing(name) or name.startswith(left_out)

    problems = {
        "missing": {name for name in info["missing_keys"] if not may_be_missing(name)},
        "unexpected": {name for name in info["unexpected_keys"] if not may_be_left(name)},
        "of another shape": {key[0] for key in info["mismatched_keys"] if not key[0].startswith(left_out)},
    }
    for what, wrong in problems.items():
        if wrong:
            shown = ", ".join(sorted(wrong)[:3])
            raise CheckpointError(f"{folder}: {len(wrong)} weights {what} ({shown}); the checkpoint is incomplete")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers prints a table of missing weights and a bar; what matters of it is checked and raised here."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # tables of a left-out LLM
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
