"""A concept bank: concepts embedded by a CLIP, and all that it takes to hold an image's CLS against them.

One safetensors file, made by `safevlm embed`, of 3 MB for CLIP-L; the text tower is not needed any more. Its metadata
say what it was made of: concepts, feature, τ, and hashes of the CLIP, of the concept file and of the bank itself. The
trap: a bank belongs to one vision tower. Cosines with the CLS of another tower look like numbers and mean nothing, so
the bank carries the fingerprint of its tower and refuses others, unless it was made as `foreign`.

A bank of a SigLIP reads patches, and carries the head that pools them. The rule is the same. SigLIP gives each text on
its own the odds exp(s·cos + b) to fit the image (Zhai et al. 2023, arXiv 2303.15343, section 3.2); given that exactly
one of the bank's texts fits, text k does with exp(s·cos_k) / Σ exp(s·cos), in which b has cancelled out: the softmax.

    b images · p patches · t templates · c concepts · d text space · v vision tower
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
from torch import Tensor, nn

from llava_patch import fingerprint
from llava_patch.clip import Kind, read_text_space
from llava_patch.siglip import HEAD, Pooling, pooling_head
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
    kind: Kind = "clip"
    """Whose text side the concepts were embedded by."""
    pooling: Pooling | None = None
    """Of a SigLIP: what the head's weights do not say."""


@dataclass(frozen=True)
class Bank:
    facts: BankFacts
    concepts: tuple[Concept, ...]
    texts: Tensor
    """(t, d), of length 1; the templates in the concepts' order."""
    projection: Tensor
    """(d, v)."""
    tower: Tensor
    """Fingerprint of the vision tower, without a pooling head."""
    head: nn.Module | None = None
    """(b, p, v) → (b, v): SigLIP's pooling; None: CLIP's CLS is pooled already."""

    def probabilities(self, cls: Tensor) -> Tensor:
        """(b, v), of a SigLIP (b, p, v) → (b, c): a softmax over all templates, and each concept's mass.

        A concept's mass is the mean of its templates times its prior. With equal counts and priors that is the paper's
        number; with unequal counts the paper's sum would favour the concept that has more paraphrases.
        """
        self._check_width(cls.shape[-1])
        if cls.dim() != (2 if self.head is None else 3):
            raise ValueError(f"a bank of a {self.facts.kind} cannot read a tensor of shape {tuple(cls.shape)}")
        pooled = cls.float() if self.head is None else self.head(cls.float())
        image = F.normalize(pooled @ self.projection.T, dim=-1)
        logits = self.facts.scale * image @ self.texts.T
        counts = [len(concept.templates) for concept in self.concepts]
        weights = [math.log(concept.prior / len(concept.templates)) for concept in self.concepts]
        masses = [part.logsumexp(-1) + weight for part, weight in zip(logits.split(counts, -1), weights, strict=True)]
        return torch.stack(masses, -1).softmax(-1)

    def check_tower(self, weights: Mapping[str, Tensor], where: object) -> None:
        """ValueError when the bank was made for another vision tower than the one with these weights."""
        if self.facts.foreign:
            norms = [len(weight) for name, weight in weights.items() if name.endswith("post_layernorm.weight")]
            self._check_width(*norms[:1] or [self.projection.shape[1]])
            return
        own, theirs = fingerprint.of_tower(weights), self.tower.cpu()
        if not fingerprint.is_same(theirs, own):
            left_out = f" ({len(own)} weights, and not {len(theirs)})" if len(own) != len(theirs) else ""
            raise ValueError(
                f"{where}: made for another vision tower than this model's{left_out}; make one with the CLIP that the "
                f"tower is from ({MAKE_IT}), or, to compare, with --foreign-tower"
            )

    def _check_width(self, width: int) -> None:
        if width != self.projection.shape[1]:
            raise ValueError(
                f"the bank reads a CLS of width {self.projection.shape[1]}, and the tower gives {width}; "
                f"make one with the CLIP that this tower is from: {MAKE_IT}"
            )

    def to(self, device: torch.device) -> Bank:
        head = self.head.to(device) if self.head is not None else None
        return replace(self, texts=self.texts.to(device), projection=self.projection.to(device), head=head)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        head = self.head.state_dict() if self.head is not None else {}
        tensors = {name: getattr(self, name) for name in TENSORS} | {HEAD + name: head[name] for name in sorted(head)}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


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
    if space.kind != "clip" and feature != "pooled":
        raise UsageError(f"--feature: {feature} is a CLS, and a {space.kind} has none; leave it at pooled")
    facts = BankFacts(feature, tau, space.scale, space.sha256, file, foreign, space.kind, space.pooling)
    head = pooling_head(space.pooling, space.head) if space.pooling else None
    return Bank(facts, tuple(concepts), space.texts, space.projection, space.tower, head)


def write_bank(bank: Bank, path: str | Path) -> None:
    """Writes a bank that is there as a whole or not at all. ValueError: another one, or no bank, is there."""
    table = {**asdict(bank.facts), "concepts": [concept.to_dict() for concept in bank.concepts]}
    about = json.dumps(table)
    if Path(path).exists():
        used_folder.refuse_other_facts(Path(path), _about(path)[0], table)
    tensors = bank.tensors()
    with atomic_file(Path(path)) as partial:
        save_tensors(tensors, partial, {"bank": about, "sha256": _digest(about, tensors)})


def read_bank(path: str | Path, taxonomy: Taxonomy) -> Bank:
    """A bank from its file, on the CPU. ValueError: not a bank, damaged, or labels that the taxonomy does not have."""
    table, metadata = _about(path)
    try:
        with safe_open(path, framework="pt") as stored:
            kept = stored.keys()
            names = [*TENSORS, *sorted(name for name in kept if name.startswith(HEAD))]
            tensors = {name: stored.get_tensor(name) for name in names}
        about = metadata["bank"]
        rows = table.pop("concepts")
        facts = checked(BankFacts, table, "its metadata")
        head = _head(facts, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a concept bank ({error}); make one: {MAKE_IT}") from error
    if metadata.get("sha256") != _digest(about, tensors):
        raise ValueError(f"{path}: the bank is not what was written (its hash differs); make it again: {MAKE_IT}")
    own = {name: tensors[name] for name in TENSORS}
    return replace(Bank(facts, concepts_from(rows, taxonomy, path), **own), head=head)


def _head(facts: BankFacts, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    weights = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if (facts.kind == "siglip") != (facts.pooling is not None) or bool(weights) != (facts.pooling is not None):
        raise ValueError(f"a bank of a {facts.kind} with{'' if weights else 'out'} a pooling head")
    return pooling_head(facts.pooling, weights) if facts.pooling else None


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
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_settings(feature: Any, tau: float) -> None:
    if feature not in FEATURES:
        raise UsageError(f"--feature: unknown {feature!r}; one of {list(FEATURES)}")
    if not 0 <= tau <= 1:
        raise UsageError(f"--tau: {tau} is not a probability")
