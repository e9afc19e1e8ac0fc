"""One row of the table of families: what a family of models needs that others do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor

from safevlm.backbones import image_tokens, reading
from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.backbones.image_tokens import ImageTokens

LINEAR = r"(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
"""The linear layers in a layer of most LLMs."""


def look(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """transformers' own seam."""
    return model.base_model.get_image_features(**tensors, return_dict=True)


@dataclass(frozen=True)
class Backbone:
    """A family of vision-language models. The defaults are those of most."""

    model_type: str
    """In a stock folder's config.json."""
    name: str
    """Of transformers' classes: `{name}ForConditionalGeneration`, `{name}Config`."""
    processor: str = ""
    """transformers' class of processor; empty: `{name}Processor`."""
    own_processor: Any = None
    """In the place of a class of transformers that needs more than images and words do."""
    own_image_processor: Any = None
    """Likewise."""
    chat_template: str = ""
    """Writes prompts where a folder has no template of its own."""
    looks_only: str = ""
    """Why the family's model does not answer here, where it is only looked at; empty: it does answer."""
    tower: str = "model.vision_tower"
    """Path of the vision tower in the model."""
    between: tuple[str, ...] = ("model.multi_modal_projector",)
    """Paths of what stands between tower and LLM, where that is no part of the tower."""
    loose: tuple[str, ...] = ()
    """Weights between tower and LLM that belong to no module."""
    look: Callable[[Any, Mapping[str, Tensor]], Any] = look
    """Model, arguments of its vision pass → what that gives."""
    projector_in_forward: str = ""
    """Path of the projector, where `get_image_features` leaves it to `forward`."""
    llm: str = "model.language_model"
    """Path of the LLM without its lm_head."""
    linear: str = LINEAR
    """Regular expression for the linear layers in a layer of the LLM: what a LoRA changes."""
    wide_as_layers: tuple[str, ...] = ()
    """Prefixes of the LLM's weights outside its layers whose shape hangs on the number of these."""
    words_beyond: int = 0
    """Rows of the embedding table that the config's vocabulary does not count."""
    takes: tuple[str, ...] = ("pixel_values",)
    """What the vision pass takes of what `join` makes."""
    positions: tuple[str, ...] = ()
    """Those of them that `forward` takes besides the tokens, to place these."""
    token_types: str = ""
    """`forward`'s argument that tells image tokens from words, or answers from what they answer."""
    token_kinds: Callable[[Tensor, Tensor | None], Tensor] = image_tokens.ones_of_images
    """What it says: (b, t) where an image's own tokens are, and labels (b, t) if there are any, → (b, t)."""
    is_one_square: bool = False
    """Whether an image that its processor leaves whole is one square of pixels, of the tower's size, and its tokens a
    square of them, row by row: what a visual security tensor and the c_abstractor need."""
    read: Callable[[Any, Sequence[Any]], list[ImageInput]] = reading.one_by_one
    """Processor and images of one request → each image as the model reads it."""
    join: Callable[[ImageInputs], dict[str, Tensor]] = image_tokens.concatenated
    """Images → the arguments of `get_image_features`."""
    cut: Callable[[Any, ImageInputs], list[ImageTokens]] = image_tokens.one_each
    """What it returned → the tokens of each image."""
    merge: Callable[[Sequence[Tensor]], Any] = image_tokens.as_list
    """Tokens of all images of a batch → `pooler_output` as `forward` reads it."""
    wholes: Callable[[ImageInputs], Sequence[int]] | None = None
    """Images → the row of the tower's output that is each image as a whole, for CLIP and SigLIP towers, which have a
    text side; None: the family's tower is none of them."""
    native_size: Callable[[Any, ImageInput], tuple[int, int]] = reading.size_of_values
    """Processor and an image → (height, width) at which the tower reads it."""
    needs: tuple[str, ...] = ()
    """Packages that transformers asks for besides."""

    @property
    def model_class(self) -> Any:
        return getattr(transformers, f"{self.name}ForConditionalGeneration")

    @property
    def config_class(self) -> Any:
        return getattr(transformers, f"{self.name}Config")

    @property
    def processor_class(self) -> Any:
        return self.own_processor or getattr(transformers, self.processor_name)

    @property
    def processor_name(self) -> str:
        """Of the class."""
        return self.own_processor.__name__ if self.own_processor else self.processor or f"{self.name}Processor"

    @property
    def seen(self) -> tuple[str, ...]:
        """Paths of everything that images go through in front of the LLM."""
        return (self.tower, *self.between)

    def looks_through(self, name: str) -> bool:
        """Whether images go through the weight of this name in front of the LLM."""
        return name.startswith(tuple(f"{path}." for path in self.seen)) or name in self.loose

    @property
    def lm_layers(self) -> str:
        """Prefix of the weights of the LLM's layers."""
        return f"{self.llm}.layers."

    @property
    def lora_targets(self) -> str:
        """Regular expression for the LLM's linear layers and nothing else."""
        return rf"{re.escape(self.lm_layers)}\d+\.{self.linear}"
