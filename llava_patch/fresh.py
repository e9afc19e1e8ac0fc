"""New models with random weights, from sizes: a CLIP, a LLaVA, their processor. For benchmarks and the miniature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_patch import fields, parts
from llava_patch.classes import Config, Model, Processor
from llava_patch.original import config as configs
from llava_patch.processor import make_room, slots_per_image

Clip = CLIPModel
"""A whole CLIP, text tower included."""

CLIP_336 = {**configs.CLIP_LARGE, **configs.TOWERS["clip-vit-large-patch14-336"], "projection_dim": 768}
"""Sizes of OpenAI's CLIP-L at 336 pixels, LLaVA-v1.5's vision tower."""


def tower_sizes(
    *, width: int, intermediate: int, layers: int, heads: int, image: int, patch: int, shared_width: int
) -> dict[str, int]:
    """Fields of a CLIPVisionConfig. `image`, `patch`: pixels on a side; `shared_width`: of CLIP's text space."""
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        "projection_dim": shared_width,
    }


def config_of(
    llm: Mapping[str, Any], tower: Mapping[str, Any], image_token_id: int, pad_token_id: int | None = None
) -> Config:
    """The config of a LLaVA on a Llama (fields of LlamaConfig) and a CLIP (of CLIPVisionConfig)."""
    config = Config(
        vision_config=CLIPVisionConfig(**tower),
        text_config=LlamaConfig(**llm),
        image_token_index=image_token_id,
    )
    config.pad_token_id = pad_token_id
    config.image_seq_length = slots_per_image(config, 0)
    return config


def model_of(config: Config) -> Model:
    """A stock LLaVA with random weights."""
    return Model(config)


def stock_around(model: Model, config: Config, kind: Callable[[Config], Model] = Model) -> Model:
    """A stock model (`kind`: LLaVA) of this config that uses the parts of `model`, hooks included, copied nowhere."""
    with torch.device("meta"):
        stock = kind(config)
    stock.model, stock.lm_head = model.model, model.lm_head
    return stock.eval()


def clip_of(tower: Mapping[str, Any], text: Mapping[str, Any], width: int) -> Clip:
    """A CLIP with random weights; `width` of the space that images and texts share."""
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text), vision_config=CLIPVisionConfig(**tower), projection_dim=width
    )
    return CLIPModel(config)


def processor_of(tokenizer: PreTrainedTokenizerBase, config: Config, chat_template: str) -> Processor:
    """LLaVA's processor for the tower of this config: shortest edge to its size, then a crop of the middle."""
    side = fields.image_size(config)
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return make_room(Processor(images, tokenizer, chat_template=chat_template), config, 0)


def add_lm_layers(model: Model, layers: int, prepare: Callable[[nn.Module], object] | None = None) -> None:
    """Gives a model that was built without LLM layers so many new ones, on the current device, one after another.

    `prepare` is called on each before the next one is made, for example to quantise it.
    """
    llm: Any = parts.language_model(model)
    fields.set_lm_layers(model.config, layers)
    llm.config.num_hidden_layers = layers
    for index in range(layers):
        layer = LlamaDecoderLayer(llm.config, index)
        if prepare is not None:
            prepare(layer)
        llm.layers.append(layer)


def take_tower(model: Model, clip: Clip) -> None:
    """Copies a CLIP's vision tower into a LLaVA of the same sizes, and freezes it there."""
    tower = parts.vision_tower(model)
    tower.load_state_dict(clip.vision_model.state_dict())
    tower.requires_grad_(False)


def tower_patches(clip: Clip, pixel_values: Tensor, layer: int) -> Tensor:
    """(b, 3, h, w) → (b, patches, v): hidden states of a layer of a CLIP's vision tower, CLS left out."""
    return _patches(clip.vision_model(pixel_values=pixel_values, output_hidden_states=True), layer)


@contextlib.contextmanager
def tower_read_at(clip: Clip, layer: int) -> Iterator[None]:
    """Within, a CLIP's vision tower ends where the hidden states of `layer` (from the end, as -2) come from: at -1."""
    encoder = clip.vision_model.encoder
    whole = encoder.layers
    encoder.layers = whole[: layer + 1]
    try:
        yield
    finally:
        encoder.layers = whole


def clip_patches(output: Any, layer: int) -> Tensor:
    """(b, patches, v): hidden states of a layer, CLS left out, from a CLIP's output with `output_hidden_states`."""
    return _patches(output.vision_model_output, layer)


def _patches(tower_output: Any, layer: int) -> Tensor:
    states: tuple[Tensor, ...] = tower_output.hidden_states
    return states[layer][:, 1:]


def freeze_tower_up_to(clip: Clip, layer: int) -> None:
    """Freezes what the hidden states of `layer` (from the end, as -2) of a CLIP's vision tower come from."""
    tower = clip.vision_model
    for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[: layer + 1]):
        part.requires_grad_(False)
