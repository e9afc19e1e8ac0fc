"""Mistral 3 with the Pixtral tower: images of any size, 2 x 2 patches to a token, and a mark at the end of each row.

transformers' own processor is not there without torchvision, so that it stands here once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.processing_utils import ProcessorMixin

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.row import Backbone


class PixtralProcessor(ProcessorMixin):
    """Images and words, as transformers' class of this name reads, writes out and saves them."""

    text_kwargs: Any = {"return_tensors": "pt"}
    images_kwargs: Any = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        """`patch_size` in pixels; `spatial_merge_size`: patches on a side that become one token."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_token_id = image_token, tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token, self.image_end_token = image_break_token, image_end_token

    def _process_images(self, images: Any, **options: Any) -> Any:
        return super()._process_images(images, **{**options, "patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_: Any) -> str:
        """What stands for an image: its rows of tokens, one mark between them and one behind the last."""
        rows, columns = (int(side) // self._side for side in image_inputs["image_sizes"][image_idx])
        return self.image_break_token.join([self.image_token * columns] * rows) + self.image_end_token

    @property
    def _side(self) -> int:
        """Pixels on the side of a token."""
        return self.patch_size * self.spatial_merge_size


def _padded(images: ImageInputs) -> dict[str, Tensor]:
    """Images differ in size; the tower cuts the zeros below and beside them off again."""
    pixels = [image.tensors["pixel_values"] for image in images]
    height, width = (max(own.shape[side] for own in pixels) for side in (-2, -1))
    return {
        "pixel_values": torch.cat([pad(own, (0, width - own.shape[-1], 0, height - own.shape[-2])) for own in pixels]),
        "image_sizes": torch.cat([image.tensors["image_sizes"] for image in images]),
    }


ROWS = (
    Backbone(
        "mistral3",
        "Mistral3",
        own_processor=PixtralProcessor,
        takes=("pixel_values", "image_sizes"),
        join=_padded,
    ),
)
