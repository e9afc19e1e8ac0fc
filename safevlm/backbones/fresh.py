"""New small models with random weights, of families that the miniature's world is taught to (`safevlm.miniature`).

What a family needs for that and others do not: special tokens, a chat template in the shape of its own, a config and a
processor that leaves an image of one size whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.backbones.processors import images_and_words
from safevlm.backbones.table import BACKBONES


@dataclass(frozen=True)
class SmallSizes:
    """Of a model whose images are squares of one size."""

    llm: Mapping[str, Any]
    """Fields of a LlamaConfig."""
    tower: Mapping[str, Any]
    """Fields of a vision config, image and patch size in pixels among them."""
    joined: int = 2
    """Patches on a side that become one image token."""

    @property
    def image_tokens(self) -> int:
        """Of an image."""
        return int(self.tower["image_size"] // self.tower["patch_size"] // self.joined) ** 2


@dataclass(frozen=True)
class Fresh:
    """How a new model of a family is made."""

    marks: tuple[str, ...]
    """Special tokens beside `<image>`, the end of an answer among them."""
    end: str
    """Of an answer."""
    template: str
    make: Callable[[Any, SmallSizes], tuple[Any, Any]]
    """Tokenizer, sizes → config and image processor."""
    fields: Callable[[SmallSizes], dict[str, Any]]
    """Further arguments of the processor."""
    tensors: Callable[[Tensor], dict[str, Tensor]]
    """(3, side, side), normalised → what the image processor makes of such an image."""
    take_tower: Callable[[Any, Any], None]
    """Tower, tower of a CLIP of the same sizes: copies the layers that they have in common, and what is below them."""


def build(model_type: str, tokenizer: Any, sizes: SmallSizes) -> tuple[Any, Any]:
    """A stock model with random weights, and its processor. KeyError: a family without a row in `FRESH`."""
    row, own = BACKBONES[model_type], FRESH[model_type]
    config, images = own.make(tokenizer, sizes)
    model = row.model_class(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    kind = images_and_words(row.processor_class)
    return model, kind(images, tokenizer, chat_template=own.template, **own.fields(sizes))


def images_of(model_type: str, pixels: Tensor) -> ImageInputs:
    """(i, 3, side, side), normalised → images as the model reads them; they stand nowhere in a prompt."""
    tensors = FRESH[model_type].tensors
    return ImageInputs(ImageInput(tensors(image), "") for image in pixels)


IDEFICS3_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + (':' if message['content'][0]['type'] == 'image' else ': ') -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<end_of_utterance>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def _idefics3(tokenizer: Any, sizes: SmallSizes) -> tuple[Any, Any]:
    side = {"longest_edge": sizes.tower["image_size"]}
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**sizes.llm),
        vision_config=dict(sizes.tower),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=sizes.joined,
    )
    config.pad_token_id = tokenizer.pad_token_id
    return config, transformers.Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)


def _one_tile(image: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": image[None, None], "pixel_attention_mask": torch.ones(1, 1, *image.shape[1:]).long()}


def _take_clip(tower: Any, clip: Any) -> None:
    """CLIP's CLS, and its norm in front of the layers, have no place here."""
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.copy_(clip.embeddings.patch_embedding.weight)
    embeddings.position_embedding.weight.copy_(clip.embeddings.position_embedding.weight[1:])
    for layer, theirs in zip(tower.encoder.layers, clip.encoder.layers, strict=False):
        layer.load_state_dict(theirs.state_dict())


FRESH: dict[str, Fresh] = {
    "idefics3": Fresh(
        marks=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
        end="<end_of_utterance>",
        template=IDEFICS3_TEMPLATE,
        make=_idefics3,
        fields=lambda sizes: {"image_seq_len": sizes.image_tokens},
        tensors=_one_tile,
        take_tower=_take_clip,
    )
}
