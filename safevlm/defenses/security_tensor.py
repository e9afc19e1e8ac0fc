"""The file of a security tensor: a learned input of a frozen model (Security Tensors, arXiv 2507.20994).

`safevlm train` with a recipe of stage security_tensor writes it; `safevlm.defenses.learned_inputs` puts it to use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_patch.fingerprint import Fingerprints
from safevlm.config import Position, TensorKind
from safevlm.data.atomic_write import atomic_file
from safevlm.files import load_json

KEY, LEARNED, BASE = "security_tensor", "learned", "base."
"""Names in the file: the tensor, what the optimiser moved where that is something else, and, before each part, the
fingerprints of the model that it was learned for."""
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
    metadata = {"format": FORMAT, **{name: json.dumps(value) for name, value in words.items()}}
    tensors = {KEY: tensor.values, **{f"{BASE}{part}": values for part, values in tensor.base.items()}}
    tensors |= {} if learned is None else {LEARNED: learned}
    whole = {name: values.detach().float().cpu().contiguous() for name, values in tensors.items()}
    broken = next((name for name, values in whole.items() if not values.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{file}: {broken} holds NaN or infinite values; nothing was saved; lower optim.lr")
    with atomic_file(file) as partial:
        save_file(whole, partial, metadata=metadata)


def read(file: Path) -> SecurityTensor:
    """ValueError: not such a file, or one whose values are not finite."""
    try:
        with safe_open(file, framework="pt") as stored:
            metadata, values, names = stored.metadata() or {}, stored.get_tensor(KEY), list(stored.keys())
            base = {name.removeprefix(BASE): stored.get_tensor(name) for name in names if name.startswith(BASE)}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: no security tensor: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{file}: no security tensor; its format is {metadata.get('format')!r}, not {FORMAT!r}")
    words = {name: load_json(value, f"{file}: {name}") for name, value in metadata.items() if name != "format"}
    kind, position = words.pop("kind", None), words.pop("position", None)
    if kind not in get_args(TensorKind) or position not in get_args(Position):
        raise ValueError(f"{file}: unknown kind {kind!r} or position {position!r}")
    if not values.isfinite().all():
        raise ValueError(f"{file}: holds values that are not finite")
    return SecurityTensor(kind, values, position, words, base)


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
