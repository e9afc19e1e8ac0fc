"""A dry run of saving: a checkpoint of the names and shapes that will train is written beside run.out and read again.

What is saved is real, filled with zeros; the rest has shapes only. A LoRA is made for one layer of the LLM: all layers
are alike, and 7B's whole LoRA would be 2.6 GB for nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from safevlm.check import checkpoint, disk
from safevlm.check.findings import Finding, size
from safevlm.check.plan import RunPlan
from safevlm.model import checkpoint_folder, loading, saving
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import provenance
from safevlm.training.prepare import prepare

LAYERS = 1


def dry_run(plan: RunPlan) -> Finding:
    """Writes and reads a checkpoint of the run's shapes. ValueError, OSError: what saving would have failed with."""
    place = disk.standing(Path(plan.recipe.run.out))
    place = place if place.is_dir() else place.parent
    folder = Path(tempfile.mkdtemp(prefix=".safevlm-check-", dir=place))
    try:
        written = _write(plan, folder)
        _read(plan, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Finding(True, f"dry run of saving: {size(written)} written beside run.out, read again, removed")


def _write(plan: RunPlan, folder: Path) -> int:
    small = checkpoint.skeleton(plan.checkpoint.config, layers=LAYERS if plan.stage.adds_lora else 0)
    with torch.device("meta"):
        model = prepare(small, plan.stage, plan.recipe)
    _fill(model)
    ours = {name: _zeros(tensor) for name, tensor in checkpoint.safety_state(small).items()}
    found = plan.checkpoint
    loaded = loading.Loaded(model, plan.processor, found.kind, found.folder, found.weights, ours)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in ours.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} free at {folder.parent}")
    saving.save(loaded, model, folder, {provenance.RECIPE: provenance.recipe_yaml(plan.recipe)})
    return sum(file.stat().st_size for file in folder.iterdir())


def _read(plan: RunPlan, folder: Path) -> None:
    """The weights have been compared by `save`; the rest must say what it is."""
    kind, wanted = checkpoint_folder.kind_of(folder), plan.stage.leaves
    if kind != wanted:
        raise ValueError(f"a saved checkpoint is read as {kind}, not as {wanted}")
    config = checkpoint_folder.config_of(folder, kind, None)
    if config.taxonomy != plan.taxonomy:
        raise ValueError("a saved checkpoint has other categories or levels than the run")
    loading.load_processor(folder, config)


def _fill(model: nn.Module) -> None:
    """Gives what is saved numbers, zeros: our weights and buffers, and the LoRA. The rest stays without."""
    for path, module in model.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.requires_grad or is_safety_name(f"{path}.{name}"):
                setattr(module, name, nn.Parameter(_zeros(weight), requires_grad=weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if is_safety_name(f"{path}.{name}"):
                setattr(module, name, _zeros(buffer))


def _zeros(shape: Tensor) -> Tensor:
    """As many zeros, all of them the same one: no memory until it is saved."""
    return torch.zeros(1, dtype=shape.dtype).expand(shape.shape)
