"""What stands in the slots of an image, and the ways in which families hand it out and take it back.

n tokens of an image in the prompt · d LLM width
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs


@dataclass(frozen=True)
class ImageTokens:
    """What stands in one image's slots."""

    tokens: Tensor
    """(n, d)."""
    deep: tuple[Tensor, ...] = ()
    """(n, d) each: what is added behind the LLM's first layers (Qwen3-VL's DeepStack)."""
    of_image: Tensor | None = None
    """(n,), bool: where they are the image's own, and not learned ones among them; None: everywhere."""

    @property
    def is_of_image(self) -> Tensor:
        """(n,), bool."""
        if self.of_image is not None:
            return self.of_image
        return torch.ones(len(self.tokens), dtype=torch.bool, device=self.tokens.device)

    def __len__(self) -> int:
        return len(self.tokens)


def concatenated(images: ImageInputs) -> dict[str, Tensor]:
    """The images' tensors one behind the other, along their first dimension."""
    names: Mapping[str, Tensor] = images[0].tensors
    return {name: torch.cat([image.tensors[name] for image in images]) for name in names}


def one_each(output: Any, images: ImageInputs) -> list[ImageTokens]:
    """Of outputs that hold one (n, d) per image."""
    return [ImageTokens(tokens) for tokens in output.pooler_output]


def by_rows(output: Any, images: ImageInputs) -> list[ImageTokens]:
    """Of outputs (rows, n, d) with one row for each of an image's `pixel_values`: tiles, crops, or the whole."""
    rows = output.pooler_output.split([len(image.tensors["pixel_values"]) for image in images])
    return [ImageTokens(own.flatten(0, 1)) for own in rows]


def ones_of_images(own: Tensor, labels: Tensor | None) -> Tensor:
    """(b, t): 1 at an image's own tokens, 0 at words and at learned tokens, which are read as words are."""
    return own.long()


def first_rows(counts: Iterable[int]) -> list[int]:
    """Where each image begins, of images with so many rows each."""
    return [0, *accumulate(counts)][:-1]


def as_list(tokens: Sequence[Tensor]) -> Any:
    """For families that join the images' tokens themselves."""
    return list(tokens)


def as_tensor(tokens: Sequence[Tensor]) -> Any:
    """(all n, d), for families that take a tensor."""
    return torch.cat(list(tokens))
