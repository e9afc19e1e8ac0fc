"""What the LLM makes of a prompt, layer by layer: the hidden states of the last tokens, which the answer begins after.

Hooks keep a few tokens per layer and row, so that memory does not grow with the prompts. The trap: a state is the
residual stream behind a layer; `output_hidden_states` gives that too, except for the last layer, which it normalises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from safevlm.model.encoded import EncodedBatch


class DeepEnough(Exception):  # noqa: N818 - no error: the layers behind have nothing to say
    """The deepest layer that is listened to is done."""


def last_states(model: Any, inner: Any, encoded: EncodedBatch, layers: Sequence[int] = (), tokens: int = 1) -> Tensor:
    """(b, l, k, d) float32: behind these decoder layers, numbered from 1, or behind all, of the last k tokens.

    Padding may be on either side; in the place of tokens that a shorter prompt lacks stands its first. Layers behind
    the deepest of them do not run. There is a gradient wherever the caller allows one.
    """
    mask = encoded.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts
    # families that place tokens in rows and columns find their own positions
    given = {"position_ids": positions} if inner.slots is not None else {}
    wanted = list(layers) or list(range(1, 1 + len(inner.lm_layers)))
    before = torch.arange(tokens - 1, -1, -1, device=mask.device)
    at = torch.maximum(positions.argmax(1, keepdim=True) - before, mask.argmax(1, keepdim=True))
    with _listening(inner, at, wanted) as heard, suppress(DeepEnough):
        model(**encoded.model_inputs, **given, use_cache=False, logits_to_keep=1)
    return torch.stack([heard[layer] for layer in wanted], 1)


@contextmanager
def _listening(inner: Any, at: Tensor, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """`at` (b, k): of which tokens."""
    heard: dict[int, Tensor] = {}

    def listener(layer: int) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            heard[layer] = hidden[torch.arange(len(at), device=at.device)[:, None], at].float()
            if layer == max(layers):
                raise DeepEnough

        return keep

    handles = [inner.lm_layers[layer - 1].register_forward_hook(listener(layer)) for layer in set(layers)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
