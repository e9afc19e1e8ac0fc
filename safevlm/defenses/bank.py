"""A concept bank: concepts embedded by a CLIP, and all that it takes to hold an image's CLS against them.

One safetensors file, made by `safevlm embed`, of 3 MB for CLIP-L; the text tower is not needed any more. Its metadata
say what it was made of: concepts, feature, τ, and hashes of the CLIP, of the concept file and of the bank itself. The
trap: a bank belongs to one vision tower. Cosines with the CLS of another tower look like numbers and mean nothing, so
the bank carries the fingerprint of its tower and refuses others, unless it was made as `foreign`.

    b images · t templates · c concepts · d text space · v vision tower
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_patch.clip import read_text_space
from llava_patch.fingerprint import fingerprint, is_same
from llava_patch.tensor_file import save_tensors
from safevlm.data import used_folder
from safevlm.data.atomic_write import atomic_file
from safevlm.defenses.concepts import Concept, concepts_from
from safevlm.files import checked, load_json
from safevlm.taxonomy import Taxonomy
from safevlm.usage import UsageError

Feature = Literal["paper", "pooled"]
FEATURES = get_args(Feature)
TAU = 0.6
"""The paper's threshold (methods §2.1)."""
BANK_FILE = "safe_clip.safetensors"
TENSORS = ("texts", "projection", "tower")
MAKE_IT = f"safevlm embed --clip DIR --out MODEL/defenses/{BANK_FILE}"


@dataclass(frozen=True)
class BankFacts:
    """What a bank was made of; stored as JSON in its metadata."""

    feature: Feature
    """Which CLS it expects: `paper`, of the layer that LLaVA reads; `pooled`, CLIP's own."""
    tau: float
    """A concept that is not neutral counts when it is likelier than this."""
    scale: float
    """What cosines are multiplied by: exp(logit_scale)."""
    clip: str
    """SHA-256 of the CLIP's weights."""
    file: str
    """SHA-256 of the concept file."""
    foreign: bool = False
    """Works with any tower of its width: the release's pairing of a 224-pixel CLIP with a 336-pixel tower."""


@dataclass(frozen=True)
class Bank:
    facts: BankFacts
    concepts: tuple[Concept, ...]
    texts: Tensor
    """(t, d), of length 1; the templates in the concepts' order."""
    projection: Tensor
    """(d, v)."""
    tower: Tensor
    """Fingerprint of the vision tower."""

    def probabilities(self, cls: Tensor) -> Tensor:
        """(b, v) → (b, c): a softmax over all templates, and each concept's mass.

        A concept's mass is the mean of its templates times its prior. With equal counts and priors that is the paper's
        number; with unequal counts the paper's sum would favour the concept that has more paraphrases.
        """
        if cls.shape[-1] != self.projection.shape[1]:
            raise ValueError(
                f"the bank reads a CLS of width {self.projection.shape[1]}, and the tower gives {cls.shape[-1]}; "
                f"make one with the CLIP that this tower is from: {MAKE_IT}"
            )
        image = F.normalize(cls.float() @ self.projection.T, dim=-1)
        logits = self.facts.scale * image @ self.texts.T
        counts = [len(concept.templates) for concept in self.concepts]
        weights = [math.log(concept.prior / len(concept.templates)) for concept in self.concepts]
        masses = [part.logsumexp(-1) + weight for part, weight in zip(logits.split(counts, -1), weights, strict=True)]
        return torch.stack(masses, -1).softmax(-1)

    def check_tower(self, weights: Mapping[str, Tensor], where: object) -> None:
        """ValueError when the bank was made for another vision tower than the one with these weights."""
        if not self.facts.foreign and not is_same(self.tower.cpu(), fingerprint(weights)):
            raise ValueError(
                f"{where}: made for another vision tower than this model's; make one with the CLIP that the tower is "
                f"from ({MAKE_IT}), or, to compare, with --foreign-tower"
            )

    def to(self, device: torch.device) -> Bank:
        return replace(self, texts=self.texts.to(device), projection=self.projection.to(device))


def make_bank(
    concepts: Sequence[Concept],
    clip: str | Path,
    *,
    feature: Feature = "pooled",
    tau: float = TAU,
    file: str = "",
    foreign: bool = False,
) -> Bank:
    """Embeds the concepts' templates with the CLIP of a folder; `file`: hash of where the concepts were read."""
    _check_settings(feature, tau)
    space = read_text_space(clip, [template for concept in concepts for template in concept.templates])
    facts = BankFacts(feature, tau, space.scale, space.sha256, file, foreign)
    return Bank(facts, tuple(concepts), space.texts, space.projection, space.tower)


def write_bank(bank: Bank, path: str | Path) -> None:
    """Writes a bank that is there as a whole or not at all. ValueError: another one, or no bank, is there."""
    table = {**asdict(bank.facts), "concepts": [concept.to_dict() for concept in bank.concepts]}
    about = json.dumps(table)
    if Path(path).exists():
        used_folder.refuse_other_facts(Path(path), _about(path)[0], table)
    tensors = {name: getattr(bank, name).cpu().contiguous() for name in TENSORS}
    with atomic_file(Path(path)) as partial:
        save_tensors(tensors, partial, {"bank": about, "sha256": _digest(about, tensors)})


def read_bank(path: str | Path, taxonomy: Taxonomy) -> Bank:
    """A bank from its file, on the CPU. ValueError: not a bank, damaged, or labels that the taxonomy does not have."""
    table, metadata = _about(path)
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in TENSORS}
        about = metadata["bank"]
        rows = table.pop("concepts")
        facts = checked(BankFacts, table, "its metadata")
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a concept bank ({error}); make one: {MAKE_IT}") from error
    if metadata.get("sha256") != _digest(about, tensors):
        raise ValueError(f"{path}: the bank is not what was written (its hash differs); make it again: {MAKE_IT}")
    return Bank(facts, concepts_from(rows, taxonomy, path), **tensors)


def _about(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a bank says of itself, and all of the file's metadata. ValueError: not a bank."""
    try:
        Path(path).open("rb").close()  # safetensors takes a file that may not be read for one that is not there
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
        return dict(load_json(metadata["bank"], "its metadata")), metadata
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a concept bank ({error}); make one: {MAKE_IT}") from error


def hash_of(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name in TENSORS:
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_settings(feature: Any, tau: float) -> None:
    if feature not in FEATURES:
        raise UsageError(f"--feature: unknown {feature!r}; one of {list(FEATURES)}")
    if not 0 <= tau <= 1:
        raise UsageError(f"--tau: {tau} is not a probability")
