"""Learnable safety tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llava_patch import image_tokens

STD = 0.02  # methods §1.1


class TokenBank(nn.Module):
    """`count` learnable vectors. A module of its own, since under ZeRO-3 only a parameter's owner may read it."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.latent, std=STD)

    def forward(self, batch: int) -> Tensor:
        """→ (batch, count, width)."""
        return self.latent.expand(batch, -1, -1)

    def prepend(self, projector: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Forward hook of LLaVA's projector: (b, n, d) → (b, count + n, d)."""
        return image_tokens.join(self(output.shape[0]), output)
