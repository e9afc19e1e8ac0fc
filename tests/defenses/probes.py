"""Probes that fit a tiny model: random, or made to see one thing in every request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from safevlm.defenses import probe_file
from safevlm.defenses.probe_file import Probe, StoredProbe
from safevlm.model.safe_llava import SafeLlava
from tests import tiny

SURE = 20.0
"""A bias that no other logit comes near."""


def stored(
    model: SafeLlava, says: tuple[str, str] | None = None, layers: tuple[int, ...] = (1,), tokens: int = 2
) -> StoredProbe:
    """`says`: level and category of every request; none: whatever random weights make of it."""
    taxonomy = model.config.taxonomy
    levels, categories = tuple(taxonomy.level_names), tuple(taxonomy.category_names)
    width = model.config.text_config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = Probe(len(layers) * tokens, width, 8, len(levels), len(categories))
        tiny.shake(probe)
    if says is not None:
        with torch.no_grad():
            for read_out, names, label in zip((probe.level, probe.category), (levels, categories), says, strict=True):
                read_out.weight.zero_()
                read_out.bias.zero_()
                read_out.bias[names.index(label)] = SURE
    return StoredProbe(probe, layers, tokens, False, levels, categories)


def write(model: SafeLlava, folder: Path, *given: Any, **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe_file.write(folder / probe_file.FILE, stored(model, *given, **options))
