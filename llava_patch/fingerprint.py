"""Whether two sets of weights are the same checkpoint, whatever type they are stored in.

A few values of every tensor are kept. A copy in half precision differs from them by rounding, which is bounded value
by value; another training run does not keep within that bound. Embeddings and lm_head are also told row by row, for a
single row may be another one: that of a new or edited token. The trap: names. A tower's own may or may not begin with
`vision_model.`, depending on what it was saved from and on the release of transformers; so may the LLM's.

    w tensors, in the order of their names; v rows of the vocabulary
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llava_patch import weights

VALUES = 16
"""Kept of each tensor, evenly spaced."""
ROUNDING = 2.0**-7
"""Twice the relative rounding error of bfloat16, the coarsest type that weights are copied to (8 significant bits)."""
SMALLEST = 1e-6
"""Rounding error of float16 near 0, with room: 2^-25 for its subnormal numbers."""
PARTS = {
    "vision tower": re.compile(r"(?:^|\.)(?:vision_tower|visual|vision_model)\.(?:vision_model\.)?(.+)"),
    "projector": re.compile(r"(?:^|\.)((?<=multi_modal_projector\.).+|(?<=connector\.).+|image_newline$)"),
    "embeddings": re.compile(r"(?:^|\.)embed_tokens\.(.+)"),
    "lm_head": re.compile(r"(?:^|\.)lm_head\.(.+)"),
    "LLM": re.compile(r"(?:^|\.)((?:layers\.\d+|norm)\..+)"),
}
"""Part of a LLaVA → its weights' names in any layout; the group is the name that all layouts share. The first fits.

Names of other families' parts are among them: what a part is called differs, what a fingerprint is does not."""
SEEN = frozenset({"vision tower", "projector", "embeddings"})
"""Parts that images and words go through before the LLM's layers."""
TIED = "lm_head"
"""The part that some copies do not store, because it is the embeddings once more."""
ROWS = {"embeddings": "embeddings by row", "lm_head": "lm_head by row"}
"""Part whose rows are tokens → under which name one value of each is kept: (1, v)."""
BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$")
"""Computed from the config; old versions of transformers saved them."""

Fingerprints = Mapping[str, Tensor]
"""Part of a LLaVA → its fingerprint (w, VALUES); and ROWS, which earlier ones lack."""


def fingerprint(weights: Mapping[str, Tensor]) -> Tensor:
    """(w, VALUES), float32, on the CPU. Buffers of whole numbers, such as position ids, do not count."""
    own = {name.removeprefix("vision_model."): weight for name, weight in weights.items() if weight.is_floating_point()}
    return torch.stack([_sample(own[name]) for name in sorted(own)])


def of_tower(weights: Mapping[str, Tensor]) -> Tensor:
    """The same of a vision tower, without the head by which SigLIP pools: models built on its tower leave it out."""
    is_head = re.compile(r"(?:vision_model\.)?head\.").match
    return fingerprint({name: weight for name, weight in weights.items() if not is_head(name)})


def of_folder(folder: Path) -> dict[str, Tensor]:
    """Fingerprints of the parts of the LLaVA in a folder, as far as they are there. ValueError: as `weights.of_folder`.

    Tensors are mapped, not read: the disk gives the pages of a few values of each.
    """
    stored = weights.of_folder(folder)
    found: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    rows: dict[str, Tensor] = {}
    for name in stored.names:
        place = _part_of(name)
        if place is not None and (tensor := stored.read(name)).is_floating_point():
            found[place[0]][place[1]] = _sample(tensor)
            if place[0] in ROWS and tensor.dim() == 2:
                rows[ROWS[place[0]]] = _of_rows(tensor)
    return rows | {part: torch.stack([own[name] for name in sorted(own)]) for part, own in found.items() if own}


def differing(one: Fingerprints, other: Fingerprints, parts: Iterable[str] = PARTS) -> list[str]:
    """The parts, of those asked for, that are not the same weights in both."""
    return [
        part for part in parts if not (_agrees(one.get(part), other.get(part), part) and _rows_agree(one, other, part))
    ]


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints are of the same weights, up to the rounding of float16 and bfloat16."""
    if one.shape != other.shape:
        return False
    # not `allclose`: the bound is relative to the larger value, so that the order does not matter
    bound = ROUNDING * torch.maximum(one.abs(), other.abs()) + SMALLEST
    return bool(((one - other).abs() <= bound).all())


def _agrees(one: Tensor | None, other: Tensor | None, part: str) -> bool:
    if one is None or other is None:
        return part == TIED or one is other
    return is_same(one, other)


def _rows_agree(one: Fingerprints, other: Fingerprints, part: str) -> bool:
    mine, theirs = (found.get(ROWS.get(part, "")) for found in (one, other))
    return mine is None or theirs is None or is_same(mine, theirs)


def _part_of(name: str) -> tuple[str, str] | None:
    """Part and own name of a weight; None: of none of a LLaVA's, such as our safety modules."""
    if BUFFERS.search(name) or name.startswith("safety_"):
        return None
    return next(((part, own[1]) for part, pattern in PARTS.items() if (own := pattern.search(name))), None)


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    at = torch.arange(VALUES, device=flat.device) * len(flat) // VALUES
    return flat[at].float().cpu()


def _of_rows(weight: Tensor) -> Tensor:
    """(v, d) → (1, v): one value of each row, not of one column, which may be the same in all of them."""
    rows = torch.arange(len(weight), device=weight.device)
    return weight.detach()[rows, rows % weight.shape[1]][None].float().cpu()
