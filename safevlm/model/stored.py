"""Safety weights and LoRA: from files into a live model, strictly.

A weight that is missing, left over or of another shape is a `CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from safevlm.model import zero3
from safevlm.model.checkpoint_folder import ADAPTER_FILE, BROKEN, CheckpointError, first_line
from safevlm.model.safe_llava import SafeLlava
from safevlm.model.safety_modules import is_safety_name


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name, on the CPU."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: broken or truncated, cannot be loaded: {first_line(error)}") from error


def check_finite(tensors: Mapping[str, torch.Tensor], where: object, then: str) -> None:
    """CheckpointError, naming the first, where weights are NaN or infinite; `then` ends the message: what to do."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        kind = "NaN" if bool(tensors[broken[0]].isnan().any()) else "infinite"
        of = f"{len(broken)} of {len(tensors)} weights are not finite"
        raise CheckpointError(f"{where}: {broken[0]} is {kind} ({of}); {then}")


def load_safety(model: SafeLlava, file: Path) -> None:
    """Reads all safety weights of the model from a file of nothing else."""
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; the checkpoint is incomplete")
    fill_safety(model, read_tensors(file), file)


def safety_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Ours among the weights of a `full` folder, as they are stored."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            keys = stored.keys()
            found |= {name: stored.get_tensor(name) for name in keys if is_safety_name(name)}
    return found


def fill_safety(model: SafeLlava, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Gives the model these safety weights, which must be all of them; `file` is for messages."""
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


def load_adapter(model: SafeLlava, folder: Path) -> Any:
    """Puts the LoRA on and compares what arrived with the file: PEFT goes on with the bare base otherwise."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(f"{folder}: this checkpoint has a LoRA; pip install -e '.[train]'") from error
    if not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{folder / ADAPTER_FILE}: missing; the checkpoint is incomplete")
    try:
        wrapped = PeftModel.from_pretrained(model, folder)
    except BROKEN as error:
        raise CheckpointError(f"{folder}: the LoRA cannot be loaded: {first_line(error)}") from error
    check_adapter(wrapped, folder)
    return wrapped


def check_adapter(wrapped: Any, folder: Path) -> None:
    """CheckpointError unless the LoRA in the model equals the one in the folder, bit for bit."""
    from peft import get_peft_model_state_dict

    arrived, stored = get_peft_model_state_dict(wrapped), load_file(folder / ADAPTER_FILE)
    check_finite(stored, folder / ADAPTER_FILE, "the training had failed; take an earlier checkpoint")
    if set(arrived) != set(stored) or any(not torch.equal(arrived[name].cpu(), stored[name]) for name in stored):
        raise CheckpointError(f"{folder}: the LoRA did not arrive in the model; adapter and base do not fit")
