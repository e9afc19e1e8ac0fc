"""Random security tensors that fit a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from safevlm.config import TensorKind
from safevlm.defenses import security_tensor
from safevlm.defenses.security_tensor import SecurityTensor
from safevlm.model.safe_llava import SafeLlava

TOKENS = 3


def tensor(model: SafeLlava, kind: TensorKind, seed: int = 0, **fields: Any) -> SecurityTensor:
    """Large enough to change what the model says."""
    images = model.config.vision_config
    shapes = {
        "textual": (TOKENS, model.config.text_config.hidden_size),
        "visual": (images.num_channels, images.image_size, images.image_size),
    }
    values = torch.randn(shapes[kind], generator=torch.Generator().manual_seed(seed))
    return SecurityTensor(kind, values, **fields)


def write(model: SafeLlava, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("textual", "visual"):
        security_tensor.write(folder / security_tensor.file_name(kind), tensor(model, kind))
