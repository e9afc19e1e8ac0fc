"""K extra vectors in front of an image's tokens, put there behind the projector.

    patches ─▶ multi_modal_projector ─▶ [ image tokens ]            stock
    patches ─▶ multi_modal_projector ─▶ [ K extra | image tokens ]  with `attach`

The processor must make the same room (`llava_patch.processor.make_room`), or LLaVA counts slots and features apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llava_patch import parts
from llava_patch.classes import Model


def attach(model: Model, prepend: Callable[[nn.Module, Any, Tensor], Tensor]) -> RemovableHandle:
    """Lets `prepend`, a forward hook, rewrite what the projector returns.

    Give a bound method of a module: a copied model then keeps its own hook, a closure would keep the old one's.
    """
    return parts.projector(model).register_forward_hook(prepend)


def join(extra: Tensor, image: Tensor) -> Tensor:
    """(b, k, d), (b, n, d) → (b, k + n, d), in the image's type."""
    return torch.cat([extra.to(image.device, image.dtype), image], dim=1)
