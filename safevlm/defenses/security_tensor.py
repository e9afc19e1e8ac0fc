"""The file of a security tensor: a learned input of a frozen model (Security Tensors, arXiv 2507.20994).

`safevlm train` with a recipe of stage security_tensor writes it; `safevlm.defenses.learned_inputs` puts it to use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from llava_patch.fingerprint import Fingerprints
from safevlm.config import Position, TensorKind
from safevlm.defenses import learned_file
from safevlm.defenses.learned_file import LearnedFile

KEY, LEARNED = "security_tensor", "learned"
"""Names in the file: the tensor, and what the optimiser moved where that is something else."""
FORMAT = "safevlm security tensor 1"


@dataclass(frozen=True)
class SecurityTensor:
    """What a file of this kind holds."""

    kind: TensorKind
    values: Tensor
    """(k, d) or (3, h, w), float32."""
    position: Position = "start"
    """Where the virtual tokens of a textual one stand."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came about: base model, loss, bound, size of the change."""
    base: Fingerprints = field(default_factory=dict)
    """Of the model that it was learned for; empty in files from before there were any."""


def file_name(kind: TensorKind) -> str:
    return f"security_tensor_{kind}.safetensors"


def write(file: Path, tensor: SecurityTensor, learned: Tensor | None = None) -> None:
    """What the tensor is stands in the file's metadata; `learned` is for a run that goes on."""
    words = {**tensor.about, "kind": tensor.kind, "position": tensor.position, "shape": list(tensor.values.shape)}
    tensors = {KEY: tensor.values, **({} if learned is None else {LEARNED: learned})}
    learned_file.write(file, FORMAT, LearnedFile(tensors, words, tensor.base))


def read(file: Path) -> SecurityTensor:
    """ValueError: not such a file, or one whose values are not finite."""
    stored = learned_file.read(file, FORMAT, "security tensor")
    if KEY not in stored.tensors:
        raise ValueError(f"{file}: no security tensor: it holds no {KEY!r}")
    words, values = dict(stored.words), stored.tensors[KEY]
    kind, position = words.pop("kind", None), words.pop("position", None)
    if kind not in get_args(TensorKind) or position not in get_args(Position):
        raise ValueError(f"{file}: unknown kind {kind!r} or position {position!r}")
    return SecurityTensor(kind, values, position, words, stored.base)


def random_like(tensor: SecurityTensor, seed: int = 0) -> SecurityTensor:
    """A control: the same values shuffled within each token or colour channel, so that every norm stays."""
    generator = torch.Generator().manual_seed(seed)
    rows = tensor.values.reshape(len(tensor.values), -1)
    shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])
    about = {**tensor.about, "shuffled": seed}
    return dataclasses.replace(tensor, values=shuffled.reshape(tensor.values.shape), about=about)


def shuffle_file(file: Path, folder: Path, seed: int = 0) -> Path:
    """Writes the control of a file under the file's own name into a folder; returns where it is."""
    out = folder / file.name
    write(out, random_like(read(file), seed))
    return out


def pixel_change(values: Tensor, image_std: Sequence[float]) -> float:
    """Largest change of a pixel by a visual tensor, on the scale of 0 to 255."""
    return (values.detach().cpu().abs() * pixel_units(image_std)).max().item()


def pixel_units(image_std: Sequence[float]) -> Tensor:
    """(3, 1, 1): a preprocessed value times this is a pixel on the scale of 0 to 255."""
    return 255 * torch.tensor(image_std).view(-1, 1, 1)
