"""What the LLM makes of a request, layer by layer: the last token's hidden state behind every decoder layer.

The requests come as the engine would hand them to `generate`: hints, virtual tokens and changed pixels are in them.
Hooks keep one token per layer and batch, so that memory does not grow with the prompts. The trap: a state is the
residual stream behind a layer; `output_hidden_states` gives that too, except for the last layer, which it normalises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from safevlm.engine import Engine
from safevlm.model.encoded import EncodedBatch
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
            found.append(last_states(engine.model, engine.loaded.safe_llava, encoded).cpu())
    stack = torch.cat(found) if found else torch.zeros(0, 0, 0)
    return States(np.array(rows, dtype=np.intp), torch.nn.functional.normalize(stack, dim=-1).numpy())


@torch.inference_mode()
def last_states(model: Any, inner: Any, encoded: EncodedBatch) -> Tensor:
    """(b, layers, d) float32: behind every layer, the token that the answer begins after. Padding on either side."""
    mask = encoded.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts
    # families that place tokens in rows and columns find their own positions
    given = {"position_ids": positions} if inner.slots is not None else {}
    with _listening(inner, positions.argmax(1)) as heard:
        model(**encoded.model_inputs, **given, use_cache=False, logits_to_keep=1)
    return torch.stack(heard, 1)


@contextmanager
def _listening(inner: Any, last: Tensor) -> Iterator[list[Tensor]]:
    heard: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        heard.append(hidden[torch.arange(len(last), device=last.device), last].float())

    handles = [layer.register_forward_hook(keep) for layer in inner.lm_layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
