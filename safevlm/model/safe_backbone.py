"""Any family of `safevlm.backbones` with safety tokens, a safety projector and a safety head.

    image ─▶ tower, projector (stock) ─▶ image tokens ─┬─▶ [lm tokens | image tokens] ─▶ LLM
                                                       └─▶ safety projector ─▶ [head tokens | features] ─▶ head

What LLaVA-v1.5 does by a hook on its projector (`safevlm.model.safe_llava`), any family does here on the seam of
`mm_encoder_outputs`: one pass of the tower gives an image's tokens, the head reads them, and the same go to the LLM.
The classes are made on first use from transformers' own: `classes_of(backbone)`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils import ModelOutput

from safevlm.backbones import PREFIX, config_facts, image_inputs, shared_pass, text_space
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.image_tokens import ImageTokens
from safevlm.backbones.row import Backbone
from safevlm.backbones.shared_pass import ImagePass
from safevlm.config import SafetyConfig
from safevlm.model.guard_output import with_guard
from safevlm.model.safety_modules import SafetyModules, check_images, is_safety_name
from safevlm.model.safety_section import SafetySection
from safevlm.model.tokens import TokenBank

OWN_ARGUMENTS = ("images_per_row", "safety_words", "safety_word_mask", "skip_lm")
"""What `forward` takes beyond the family's own arguments."""


class Classes(NamedTuple):
    """A family's classes with safety modules."""

    config: Any
    model: Any


@dataclass
class GuardOutput(ModelOutput):
    """The head's logits alone, where the LLM was left out."""

    logits: Tensor | None = None
    level_logits: Tensor | None = None
    """(b, levels), where images were given; of a row without an image they mean nothing."""
    category_logits: Tensor | None = None
    """(b, categories), likewise."""
    idle: Tensor | None = None
    """A zero to add to the loss; in training, for a batch without an image."""


class SafeBackbone(SafetyModules):
    """In front of a family's `…ForConditionalGeneration`; without safety modules it computes what that does.

    `forward` takes `ImageInputs` as `pixel_values`, with `images_per_row`, and then judges; pixels as the family's own
    processor gives them go the stock way, without a verdict.
    """

    backbone: ClassVar[Backbone]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the family's
        safety, width = config.safety_config, config_facts.hidden_size(config)
        _check(safety, self.backbone)
        self.safety_lm_tokens = TokenBank(safety.lm_tokens, width) if safety.lm_tokens else None
        self.add_guard(config, width, width)
        self.post_init()  # type: ignore[attr-defined]  # the family's

    slots: ClassVar[None] = None
    """`<image>` tokens per image: images differ in them."""

    @property
    def pixel_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of every image that its processor leaves whole; None: there is no one shape."""
        side = config_facts.image_side(self.config)
        return (3, side, side) if self.backbone.is_one_square else None

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.get_submodule(self.backbone.tower)  # type: ignore[attr-defined]  # nn.Module's

    @property
    def lm_layers(self) -> nn.ModuleList:
        """The LLM's decoder layers; empty in a model that was loaded without its LLM."""
        return self.get_submodule(self.backbone.lm_layers.removesuffix("."))  # type: ignore[attr-defined]

    def tower_state(self) -> dict[str, Tensor]:
        """The vision tower's weights by their own names, not copied."""
        return self.tower.state_dict()

    clip_features: ClassVar[tuple[str, ...]] = ("pooled",)
    """What a concept bank may read of a pass, where the tower has a text side."""

    @property
    def text_side(self) -> str:
        """Whose text side reads what the tower sees, `clip` or `siglip`; empty: it has none."""
        side = text_space.side_of(self.backbone, self)
        return side.kind if side is not None else ""

    def encode_images(self, images: ImageInputs) -> ImagePass:
        """One vision pass; the only place that runs the tower. ValueError: tiles, where a grid is needed."""
        if self.config.safety_config.projector == "c_abstractor":
            _check_whole(images)
        return shared_pass.encode(self.backbone, self, images)

    def image_tokens(self, passes: Sequence[ImagePass]) -> list[ImageTokens]:
        """What stands in the slots of every image, LM tokens in front of it."""
        tokens = [own for each in passes for own in each.image_tokens]
        if self.safety_lm_tokens is None:
            return tokens
        learned = self.safety_lm_tokens(1)[0]
        return [_behind(learned.to(own.tokens), own) for own in tokens]

    def lm_arguments(
        self,
        input_ids: Tensor,
        tokens: Sequence[ImageTokens],
        images: Sequence[ImageInputs],
        labels: Tensor | None = None,
    ) -> dict[str, Any]:
        """Arguments of `forward` and `generate` besides ids and mask; a new dict per call, since both write into it.

        `tokens` fill the image slots of `input_ids` (b, t) in order. `images`: those whose tokens are among them.
        `labels` (b, t), where there are answers.
        """
        if self.backbone.projector_in_forward:
            given = self._among_words(input_ids, tokens)
        else:
            given = shared_pass.forward_arguments(self.backbone, tokens)
        joined = self.backbone.join(image_inputs.join(images)) if images and self.backbone.positions else {}
        given |= {name: joined[name] for name in self.backbone.positions if name in joined}
        return given | self._token_types(input_ids, tokens, labels)

    def _among_words(self, input_ids: Tensor, tokens: Sequence[ImageTokens]) -> dict[str, Tensor]:
        """Projected tokens in their slots, for a family whose `forward` would project them again."""
        if not tokens:
            return {}
        words = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]  # the family's
        slots = input_ids == config_facts.image_token_id(self.config)
        filling = torch.cat([each.tokens for each in tokens]).to(words)
        return {"inputs_embeds": words.masked_scatter(slots[..., None], filling)}

    def _token_types(
        self, input_ids: Tensor, tokens: Sequence[ImageTokens], labels: Tensor | None
    ) -> dict[str, Tensor]:
        if not self.backbone.token_types:
            return {}
        own = slots = input_ids == config_facts.image_token_id(self.config)
        if tokens:
            own = slots.masked_scatter(slots, torch.cat([each.is_of_image for each in tokens]).to(slots))
        return {self.backbone.token_types: self.backbone.token_kinds(own, labels)}

    def guarded_forward(self, family: Any, arguments: dict[str, Any]) -> Any:
        """`forward`, once its arguments have names."""
        own = {name: arguments.pop(name, None) for name in OWN_ARGUMENTS}
        images, input_ids = arguments.get("pixel_values"), arguments.get("input_ids")
        found: dict[str, Any] = {}
        mask, labels = arguments.get("attention_mask"), arguments.get("labels")
        words = functools.partial(
            self.words_or_own, own["safety_words"], own["safety_word_mask"], input_ids, mask, labels
        )
        if isinstance(images, ImageInputs):
            arguments.pop("pixel_values")
            vision = self.encode_images(images)
            counts = _counts(own["images_per_row"], len(images), input_ids)
            if self.safety_head is not None:
                verdict = self.judge(vision.patches, counts, *words())
                found = {"level_logits": verdict.level, "category_logits": verdict.category}
            if not own["skip_lm"] and input_ids is not None:
                arguments |= self.lm_arguments(input_ids, self.image_tokens([vision]), [images], labels)
        elif self.training and images is None:  # type: ignore[attr-defined]  # nn.Module's
            found = {"idle": self._idle(*words())}
            if input_ids is not None and arguments.get(self.backbone.token_types) is None:
                arguments |= self._token_types(input_ids, [], labels)
        if own["skip_lm"]:
            return GuardOutput(**found)
        if arguments.get("inputs_embeds") is not None:
            arguments["input_ids"] = None  # they stand for the same tokens
        if not self.has_lm:
            raise ValueError("this model was loaded without its LLM; it can encode and judge images, but not answer")
        if self.training:  # type: ignore[attr-defined]  # the Trainer says so to the model's config, the LLM asks its own
            arguments.setdefault("use_cache", False)
        output = family.forward(self, **arguments)
        return with_guard(output, _guarded(type(output)), found) if isinstance(output, ModelOutput) else output

    @property
    def has_lm(self) -> bool:
        """Whether the model can answer: False when it was loaded without the LLM's layers."""
        return len(self.lm_layers) > 0

    def _idle(self, words: Tensor | None, word_mask: Tensor | None) -> Tensor | None:
        """Zero, by way of random features: it brings every safety weight a gradient of zeros in the usual order.

        Why: `SafeLlava._idle`.
        """
        ours = [weight for name, weight in self.named_parameters() if is_safety_name(name)]  # type: ignore[attr-defined]
        if not torch.is_grad_enabled() or not any(weight.requires_grad for weight in ours):
            return None
        reached = []
        if self.safety_head is not None:
            blank = ours[0].new_zeros(1, config_facts.hidden_size(self.config))
            given = (words[:1], word_mask[:1]) if words is not None and word_mask is not None else (None, None)
            if not self.reads_text or given[0] is not None:
                verdict = self.judge([blank], [1], *given)
                reached += [verdict.level, verdict.category]
        if self.safety_lm_tokens is not None:
            reached.append(self.safety_lm_tokens(1))
        return sum((tensor.float().sum() for tensor in reached), ours[0].new_zeros((), dtype=torch.float32)) * 0.0


def _counts(given: Any, images: int, input_ids: Tensor | None) -> list[int]:
    if given is None:
        raise ValueError("images_per_row (b,) must say how many of the images each row has")
    counts = given.tolist() if isinstance(given, Tensor) else list(given)
    if input_ids is not None and len(counts) != len(input_ids):
        raise ValueError(f"images_per_row has {len(counts)} numbers for {len(input_ids)} rows")
    check_images(images, counts)
    return counts


def _behind(learned: Tensor, own: ImageTokens) -> ImageTokens:
    """An image's tokens behind learned ones; nothing is added to these in deeper layers."""
    nothing = learned.new_zeros(len(learned), own.tokens.shape[1])
    return ImageTokens(
        torch.cat([learned, own.tokens]),
        tuple(torch.cat([nothing.to(layer), layer]) for layer in own.deep),
        torch.cat([own.is_of_image.new_zeros(len(learned)), own.is_of_image]),
    )


def _check_whole(images: ImageInputs) -> None:
    if any(len(image.tensors["pixel_values"]) != 1 for image in images):
        raise ValueError(
            "safety.projector: the c_abstractor needs a square grid of patches, and the image processor cuts this "
            "image into tiles; set it so that it cuts none, or take the resampler"
        )


def _check(safety: SafetyConfig, backbone: Backbone) -> None:
    if safety.projector == "c_abstractor" and not backbone.is_one_square:
        raise ValueError(
            f"safety.projector: the c_abstractor needs a square grid of patches, and images of {backbone.model_type} "
            "are none; take the resampler"
        )


@functools.cache
def classes_of(backbone: Backbone) -> Classes:
    """The family's config and model class with safety modules, registered with transformers."""
    model_type = f"{PREFIX}{backbone.model_type}"
    fields = {"safety": None, "policy": None, "base_checkpoint": None}
    types = {"safety": "dict | None", "policy": "dict | None", "base_checkpoint": "str | None"}
    config = type(
        f"Safe{backbone.name}Config",
        (SafetySection, backbone.config_class),
        {"model_type": model_type, "__annotations__": types, "__module__": __name__, **fields},
    )
    family = backbone.model_class
    name = f"Safe{family.__name__}"
    model: Any = type(
        name,
        (SafeBackbone, family),
        {"backbone": backbone, "config_class": config, "forward": _forward(family), "__module__": __name__},
    )
    for known in (name, model_type):
        mapping = get_checkpoint_conversion_mapping(family.__name__) or get_checkpoint_conversion_mapping(
            backbone.model_type
        )
        if mapping is not None:  # else the model's weights have the names that they have on disk
            register_checkpoint_conversion_mapping(known, mapping, overwrite=True)
    AutoConfig.register(model_type, config, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    return Classes(config, model)


def _forward(family: Any) -> Any:
    """`forward` with the family's own arguments, which `generate` looks up by name, and ours."""
    stock = inspect.signature(family.forward)
    named = [each for each in stock.parameters.values() if each.kind is not each.VAR_KEYWORD]
    rest = [each for each in stock.parameters.values() if each.kind is each.VAR_KEYWORD]
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in OWN_ARGUMENTS]

    def forward(self: SafeBackbone, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip((each.name for each in named[1:]), args, strict=False))
        return self.guarded_forward(family, {**given, **kwargs})

    forward.__signature__ = stock.replace(parameters=[*named, *ours, *rest])  # type: ignore[attr-defined]
    return forward


@functools.cache
def _guarded(kind: Any) -> Any:
    """The family's output with the head's logits."""
    extra = [(name, Any, None) for name in ("level_logits", "category_logits", "idle")]
    return make_dataclass(f"Safe{kind.__name__}", extra, bases=(kind,))
