"""What the LLM makes of a request, layer by layer: the last token's hidden state behind every decoder layer.

The requests come as the engine would hand them to `generate`: hints, virtual tokens and changed pixels are in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from safevlm.engine import Engine
from safevlm.model.prompt_states import last_states
from safevlm.types import Request


@dataclass(frozen=True)
class States:
    """The requests that reached the model, and their states."""

    rows: NDArray[np.intp]
    """(k,): places among the requests that were given; those that the defense answered itself are missing."""
    units: NDArray[np.float32]
    """(k, layers, d), of length 1 each: a dot product is a cosine."""


def states(engine: Engine, requests: Sequence[Request], batch_size: int, title: str) -> States:
    """Every request once through the LLM, in batches with a progress bar."""
    rows: list[int] = []
    found: list[Tensor] = []
    for start in tqdm(range(0, len(requests), batch_size), title, leave=False):
        encoded = engine.encoded(requests[start : start + batch_size])
        if encoded is not None:
            rows += [start + row for row in encoded.requests]
            with torch.inference_mode():
                found.append(last_states(engine.model, engine.loaded.safe_llava, encoded).squeeze(2).cpu())
    stack = torch.cat(found) if found else torch.zeros(0, 0, 0)
    return States(np.array(rows, dtype=np.intp), torch.nn.functional.normalize(stack, dim=-1).numpy())
