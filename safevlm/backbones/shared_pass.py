"""One vision pass for detection and generation, through transformers' own seam.

`get_image_features` is what `generate` calls itself. Here it is called first; a head reads what it gave, and the same
tokens go to `forward` or `generate` as `mm_encoder_outputs`, so that the tower runs once.

    n tokens of an image in the prompt · d LLM width
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from safevlm.backbones import text_space
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.image_tokens import ImageTokens
from safevlm.backbones.row import Backbone


@dataclass(frozen=True)
class ImagePass:
    """What one pass gave for some images, in order."""

    image_tokens: tuple[ImageTokens, ...]
    clip_cls: Tensor | None = None
    """(i, w): CLIP's CLS of each whole image, after post-layernorm, where the tower is a CLIP."""
    siglip_patches: Tensor | None = None
    """(i, p, w): SigLIP's patches of each whole image, after post-layernorm, where the tower is a SigLIP."""

    def __len__(self) -> int:
        return len(self.image_tokens)

    def __getitem__(self, rows: slice) -> ImagePass:
        wholes = {"clip_cls": self.clip_cls, "siglip_patches": self.siglip_patches}
        return ImagePass(
            self.image_tokens[rows], **{name: None if own is None else own[rows] for name, own in wholes.items()}
        )

    @property
    def patches(self) -> tuple[Tensor, ...]:
        """(n, d) of each image: what a safety head reads. Images differ in n."""
        return tuple(each.tokens for each in self.image_tokens)


@dataclass
class EncoderOutput(ModelOutput):
    """Image tokens as the family's `forward` reads them; `deepstack_features` only where there are any."""

    pooler_output: Any = None
    deepstack_features: Any = None


def encode(backbone: Backbone, model: Any, images: ImageInputs) -> ImagePass:
    """Runs the vision tower, and whatever stands between it and the LLM, once.

    Frozen parts run under `no_grad`, unless the pixels want a gradient.
    """
    joined = backbone.join(images)
    dtype = next(model.get_submodule(backbone.tower).parameters()).dtype
    tensors = {
        name: joined[name].to(dtype) if joined[name].is_floating_point() else joined[name] for name in backbone.takes
    }
    seen = [model.get_submodule(name) for name in backbone.seen]
    wants_gradient = any(each.requires_grad for each in tensors.values()) or any(
        weight.requires_grad for part in seen for weight in part.parameters()
    )
    with contextlib.nullcontext() if wants_gradient else torch.no_grad():
        output = backbone.look(model, tensors)
        if backbone.projector_in_forward:
            output.pooler_output = model.get_submodule(backbone.projector_in_forward)(output.last_hidden_state)
        tokens = backbone.cut(output, images)
        return ImagePass(tuple(tokens), **text_space.of_wholes(backbone, model, output, images))


def forward_arguments(backbone: Backbone, tokens: Sequence[ImageTokens]) -> dict[str, Any]:
    """`mm_encoder_outputs` for `forward` and `generate`, which write into the dict: a new one per call."""
    if not tokens:
        return {}
    deep = [list(layer) for layer in zip(*(each.deep for each in tokens), strict=True)]
    output = EncoderOutput(
        pooler_output=backbone.merge([each.tokens for each in tokens]), deepstack_features=deep or None
    )
    return {"mm_encoder_outputs": {"image": output}}
