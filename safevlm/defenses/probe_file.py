"""The probe: a small network on hidden states of the LLM, with the head's two read-outs; and its file.

`safevlm train` with a recipe of stage probe writes it; `safevlm.defenses.probe` puts it to use.

    states (b, l, k, d) ─▶ each of length √d ─▶ linear, GELU ─▶ level, category
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from llava_patch.fingerprint import Fingerprints
from safevlm.defenses import learned_file
from safevlm.defenses.learned_file import LearnedFile
from safevlm.taxonomy import Taxonomy

FILE = "probe.safetensors"
FORMAT = "safevlm probe 1"


class ProbeLogits(NamedTuple):
    level: Tensor
    """(b, levels)."""
    category: Tensor
    """(b, categories)."""


class Probe(nn.Module):
    def __init__(self, states: int, width: int, hidden: int, levels: int, categories: int) -> None:
        """`states`: how many it reads, layers x tokens, of `width` d; `hidden`: its own width."""
        super().__init__()
        self.hidden = nn.Linear(states * width, hidden)
        self.level = nn.Linear(hidden, levels)
        self.category = nn.Linear(hidden, categories)

    def forward(self, states: Tensor) -> ProbeLogits:
        """(b, l, k, d) → logits. States grow from layer to layer; their directions count."""
        read = F.gelu(self.hidden(F.rms_norm(states.float(), states.shape[-1:]).flatten(1)))
        return ProbeLogits(self.level(read), self.category(read))


@dataclass(frozen=True)
class StoredProbe:
    """What a file of this kind holds."""

    probe: Probe
    layers: tuple[int, ...]
    """Of the LLM, numbered from 1."""
    tokens: int
    """k, at the end of the prompt."""
    reads_words: bool
    """Whether it was trained on requests in words too."""
    levels: tuple[str, ...]
    categories: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came about: base model, records."""
    base: Fingerprints = field(default_factory=dict)
    """Of what the LLM's states hang on: the model's parts and its LM tokens."""

    @property
    def width(self) -> int:
        """d."""
        return self.probe.hidden.in_features // (len(self.layers) * self.tokens)


def write(file: Path, stored: StoredProbe) -> None:
    """ValueError: weights that are not finite."""
    words = {
        **stored.about,
        "layers": stored.layers,
        "tokens": stored.tokens,
        "reads_words": stored.reads_words,
        "levels": stored.levels,
        "categories": stored.categories,
    }
    learned_file.write(file, FORMAT, LearnedFile(stored.probe.state_dict(), words, stored.base))


def read(file: Path, taxonomy: Taxonomy) -> StoredProbe:
    """ValueError: not such a file, one that is broken, or one of other levels and categories."""
    found = learned_file.read(file, FORMAT, "probe")
    words = dict(found.words)
    try:
        layers, tokens = tuple(map(int, words.pop("layers"))), int(words.pop("tokens"))
        reads_words = words.pop("reads_words") is True
        levels, categories = tuple(words.pop("levels")), tuple(words.pop("categories"))
        hidden, width = found.tensors["hidden.weight"].shape
        states = len(layers) * tokens
        probe = Probe(states, width // states, hidden, len(levels), len(categories))
        probe.load_state_dict(dict(found.tensors))
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: a probe's weights or words are missing or do not fit each other") from error
    for kind, own, names in (
        ("levels", levels, taxonomy.level_names),
        ("categories", categories, taxonomy.category_names),
    ):
        _check_names(file, kind, own, names)
    probe.requires_grad_(False)
    return StoredProbe(probe.eval(), layers, tokens, reads_words, levels, categories, words, found.base)


def _check_names(file: Path, kind: str, own: Sequence[str], names: Sequence[str]) -> None:
    if tuple(own) != tuple(names):
        raise ValueError(f"{file}: learned the {kind} {list(own)}, and this checkpoint has {list(names)}; train anew")
