"""Writing checkpoints of ours: complete, whole weights only, and read again before anybody relies on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safevlm.model import base_print, card, loading, stored, zero3
from safevlm.model.checkpoint_folder import ADAPTER_FILE, SAFETY_FILE, CheckpointError, Kind
from safevlm.model.safety_modules import is_safety_name

LOWER = "start again from the last good checkpoint, with a lower optim.lr"


def save(
    loaded: loading.Loaded, model: Any, folder: Path, files: dict[str, str] | None = None, *, writes: bool = True
) -> None:
    """Writes a complete checkpoint of ours into an existing folder: all that trains, config, processor, `files`.

    `model` is a SafeLlava (kind `safety`) or a PeftModel around one (kind `adapter`). Under DeepSpeed every process
    must call, and only one `writes`. What was written is read again and compared.
    """
    inner = loading.inner_of(model)
    ours_live = ((name, each) for name, each in inner.state_dict(keep_vars=True).items() if is_safety_name(name))
    lost = {name for name, tensor in ours_live if _is_only_a_shadow(tensor)}
    live = zero3.whole(inner, lambda name: is_safety_name(name) and name not in lost)
    adapter = zero3.whole(model, lambda name: ".lora_" in name)
    if not writes:
        return
    ours = {**live, **{name: loaded.ours[name].cpu() for name in lost}}
    empty = [name for name, tensor in {**ours, **adapter}.items() if tensor.numel() == 0]
    if empty:
        raise CheckpointError(f"{folder}: {empty} would be saved empty; gather the weights that ZeRO-3 has cut first")
    stored.check_finite({**ours, **adapter}, folder, f"nothing was saved; {LOWER}")
    save_file(ours, folder / SAFETY_FILE, metadata={"format": "pt"})
    if loaded.base_fingerprints:
        base_print.write(folder, str(loaded.base), loaded.base_fingerprints)
    config = type(inner.config).from_dict({**inner.config.to_dict(), "base_checkpoint": str(loaded.base)})
    config.architectures = [type(inner).__name__]
    config.save_pretrained(folder)
    if model is not inner:
        model.save_pretrained(folder, state_dict=adapter)
    loaded.processor.save_pretrained(folder)
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    kind: Kind = "safety" if model is inner else "adapter"
    card.write(folder, config, kind, loaded.base, (files or {}).get(card.RUN))  # in place of PEFT's, all blanks
    _check_written(folder / SAFETY_FILE, ours)
    if model is not inner:
        stored_names = {name.replace(".default.", "."): tensor for name, tensor in adapter.items()}
        _check_written(folder / ADAPTER_FILE, stored_names)


def _is_only_a_shadow(weight: torch.Tensor) -> bool:
    """Frozen or a buffer, and cut or rounded by DeepSpeed: what the run began with is the better copy."""
    return not weight.requires_grad and (zero3.is_cut(weight) or weight.dtype != torch.float32)


def _check_written(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Empty or half-written weights are the usual end of a run under ZeRO-3 (base facts §1, row 14)."""
    written = stored.read_tensors(file)
    differing = sorted(name for name in {*written, *tensors} if not _same(written.get(name), tensors.get(name)))
    if differing:
        raise CheckpointError(f"{file}: {len(differing)} weights were not stored as they are: {differing[:3]}")


def _same(stored: torch.Tensor | None, tensor: torch.Tensor | None) -> bool:
    return stored is not None and tensor is not None and torch.equal(stored, tensor)
