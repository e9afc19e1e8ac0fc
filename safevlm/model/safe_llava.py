"""LLaVA with safety tokens, a safety projector and a safety head.

    pixels ─▶ tower ─▶ patches ─┬─▶ projector (stock) ─▶ [lm tokens | image tokens] ─▶ LLM
                                └─▶ safety projector ─▶ [head tokens | safety features] ─▶ safety head

Every parameter of ours has a name that starts with `safety_`; freezing, saving and tests rely on that prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.cache_utils import Cache

from llava_patch import checkpoints, classes, fields, image_tokens, parts, processor, vision
from safevlm.model.guard_output import with_guard
from safevlm.model.safety_modules import SafetyModules, check_images, is_safety_name
from safevlm.model.safety_section import SafetySection
from safevlm.model.tokens import TokenBank


class SafeLlavaConfig(SafetySection, classes.Config):
    """LLaVA's config and a safety section; everything needed to rebuild the model."""

    model_type = "safe_llava"

    safety: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    base_checkpoint: str | None = None


Function = TypeVar("Function", bound=Callable[..., Any])


def signed(function: Function) -> Function:
    """The function with its signature at hand: `generate` asks for it eight times a call, 3 % of a first token."""
    function.__dict__["__signature__"] = inspect.signature(function)
    return function


@dataclass
class SafeLlavaOutput(classes.Output):
    """LLaVA's output and the head's logits."""

    level_logits: Tensor | None = None
    """(b, levels), when the model has a head, and `pixel_values` and `input_ids` were given; of a row without an image
    they mean nothing. Softmax gives the probabilities of the model's `level_names`."""
    category_logits: Tensor | None = None
    """(b, categories), likewise; `category_names`."""
    idle: Tensor | None = None
    """A zero to add to the loss; in training, for a batch without an image (`SafeLlava._idle`)."""


class SafeLlava(SafetyModules, classes.Model):
    """A LLaVA with safety modules as its config says; without any it computes what stock LLaVA does, bit for bit."""

    config_class = SafeLlavaConfig
    config: SafeLlavaConfig

    def __init__(self, config: SafeLlavaConfig) -> None:
        super().__init__(config)
        safety, width = config.safety_config, fields.hidden_size(config)
        if safety.projector == "c_abstractor" and fields.keeps_cls(config):
            raise ValueError("safety.projector: the c_abstractor needs a square grid of patches, without CLS")
        self.safety_lm_tokens = TokenBank(safety.lm_tokens, width) if safety.lm_tokens else None
        if self.safety_lm_tokens is not None:
            image_tokens.attach(self, self.safety_lm_tokens.prepend)
        self.add_guard(config, fields.patch_width(config), width)
        self.slots = processor.slots_per_image(config, safety.lm_tokens)
        """`<image>` tokens per image in `input_ids`."""
        self.post_init()

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image as the vision tower takes it."""
        return fields.pixel_shape(self.config)

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return parts.vision_tower(self)

    @property
    def lm_layers(self) -> nn.ModuleList:
        """The LLM's decoder layers; empty in a model that was loaded without its LLM."""
        return parts.lm_layers(self)

    @property
    def has_lm(self) -> bool:
        """Whether the model can answer: False while it has no layers of an LLM, which a caller may add later."""
        return parts.has_lm(self)

    def tower_state(self) -> dict[str, Tensor]:
        """The vision tower's weights by their own names, not copied."""
        return parts.tower_state(self)

    clip_features: ClassVar[tuple[str, ...]] = ("paper", "pooled")
    """What a concept bank may read of a pass."""
    text_side: ClassVar[str] = "clip"
    """Whose text side reads what the tower sees."""

    def encode_images(self, pixel_values: Tensor) -> vision.VisionPass:
        """(i, 3, h, w) → one vision pass; the only place that runs the tower."""
        return vision.encode_images(self, pixel_values)

    def project(self, patches: Tensor) -> Tensor:
        """(i, p, v) → (i, n, d): what stands in the image slots, LM tokens included."""
        return vision.project(self, patches)

    def image_tokens(self, passes: Sequence[vision.VisionPass]) -> Sequence[Tensor]:
        """What stands in the slots of every image, (n, d) each, LM tokens included; in one call of the projector."""
        return self.project(torch.cat([each.patches for each in passes])).unbind() if passes else ()

    def lm_arguments(
        self, input_ids: Tensor, tokens: Sequence[Tensor], images: Any, labels: Tensor | None = None
    ) -> dict[str, Any]:
        """Arguments of `forward` and `generate` besides ids and mask; a new dict per call, since both write into it."""
        return vision.as_arguments(tokens)

    @signed
    def forward(  # generate() inspects these names; *args would make it refuse pixel_values (base facts §3.5)
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        safety_words: Tensor | None = None,
        safety_word_mask: Tensor | None = None,
        skip_lm: bool = False,
        patches: Tensor | None = None,
        has_patches: Tensor | None = None,
        **kwargs: Any,
    ) -> SafeLlavaOutput:
        """Stock LLaVA's forward, and the head's logits wherever there are pixels and a head.

        The LLM's logits and the loss are what they are without the head. It costs 85 GFLOP per image with the default
        projector on 7B, 1 % of the LLM's 8.5 TFLOP for a prompt of 640 tokens (counted with torch's FlopCounterMode).
        `generate` encodes images itself, before its first step, and does not judge.

        `safety_words` (b, w) and `safety_word_mask` (b, w), True at words: what a head that reads text is to read
        (`safevlm.data.chat.question_ids`); by default the tokens of `input_ids` below `attention_mask` that are neither
        image slots nor labelled. `skip_lm` leaves the LLM out (head-only training): the head's logits are all that the
        output holds. `patches` (c, p, v) are what the tower gave earlier for the images at which `has_patches` (i,) is
        True; `pixel_values` has the others (`safevlm.training.feature_cache`). ValueError: images and image slots
        differ in number; words without a mask.
        """
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("give pixel_values or mm_encoder_outputs, not both")
        words = partial(self.words_or_own, safety_words, safety_word_mask, input_ids, attention_mask, labels)
        verdict = idle = None
        shown = next((given for given in (has_patches, pixel_values) if given is not None), None)
        if shown is not None:
            images_per_row = None if input_ids is None else self.images_per_row(input_ids)
            if images_per_row is not None:
                check_images(len(shown), images_per_row)
            patches = self._patches(pixel_values, patches, has_patches)
            if self.safety_head is not None and input_ids is not None and images_per_row is not None:
                verdict = self.judge(patches, images_per_row, *words())
        elif self.training:
            idle = self._idle(*words())
        found: dict[str, Any] = {
            "level_logits": verdict.level if verdict else None,
            "category_logits": verdict.category if verdict else None,
            "idle": idle,
        }
        if skip_lm:
            return SafeLlavaOutput(**found)
        if not self.has_lm:
            raise ValueError("this model was loaded without its LLM; it can encode and judge images, but not answer")
        if patches is not None:
            mm_encoder_outputs = vision.as_encoder_outputs(self.project(patches).unbind())
        if self.training:  # the Trainer says so to LLaVA's config, and the LLM asks its own
            kwargs.setdefault("use_cache", False)
        output = super().forward(
            **vision.lm_inputs(self, input_ids, inputs_embeds, mm_encoder_outputs),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        return cast(SafeLlavaOutput, with_guard(output, SafeLlavaOutput, found))

    def _patches(self, pixel_values: Tensor | None, known: Tensor | None, is_known: Tensor | None) -> Tensor:
        """(i, p, v) of all images, in order."""
        seen = self.encode_images(pixel_values).patches if pixel_values is not None else None
        if known is None or is_known is None or seen is None:
            given = seen if known is None else known
            if given is None or (is_known is not None and len(given) != len(is_known)):
                raise ValueError("patches and pixel_values together must hold every image of has_patches")
            return given
        every = seen.new_empty(len(is_known), *seen.shape[1:])
        every[is_known], every[~is_known] = known.to(seen), seen
        return every

    def _idle(self, words: Tensor | None, word_mask: Tensor | None) -> Tensor | None:
        """Zero, by way of a blank image: it brings every safety weight a gradient of zeros in the usual order.

        ZeRO-2 fills its buckets in the order in which gradients arrive. A process whose batch has no image must
        bring the same gradients in the same order, else weights get each other's gradients, without an error
        (tests/training/test_processes.py). ZeRO-3 is stricter: there all processes get records of one kind
        (`safevlm.data.batches`).
        """
        trains = any(weight.requires_grad for name, weight in self.named_parameters() if is_safety_name(name))
        if not trains or not torch.is_grad_enabled():
            return None
        blank = vision.blank_images(self, 1)
        patches = self.encode_images(blank).patches
        reached = []
        if self.safety_head is not None and words is not None and word_mask is not None:
            verdict = self.judge(patches, [1], words[:1], word_mask[:1])
            reached += [verdict.level, verdict.category]
        reached.append(self.project(patches))
        return sum((tensor.float().sum() for tensor in reached), blank.new_zeros((), dtype=torch.float32)) * 0.0

    def images_per_row(self, input_ids: Tensor) -> list[int]:
        """Images of each row, from the number of its image slots; ValueError when slots are left over."""
        slots = (input_ids == fields.image_token_id(self.config)).sum(1)
        if (slots % self.slots).any():
            raise ValueError(
                f"image slots per row {slots.tolist()} are no multiple of the model's {self.slots} per image; "
                "prepare the prompt with this checkpoint's own processor"
            )
        return (slots // self.slots).tolist()


checkpoints.keep_llava_names("SafeLlava")
AutoConfig.register(SafeLlavaConfig.model_type, SafeLlavaConfig)
AutoModelForImageTextToText.register(SafeLlavaConfig, SafeLlava)
AutoProcessor.register(SafeLlavaConfig, classes.Processor)
