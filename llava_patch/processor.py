"""Room for K extra tokens in every image of the prompt."""

from __future__ import annotations

from llava_patch import fields
from llava_patch.classes import Config, Processor

CLS_TOKENS = 1
"""CLIP's own CLS, which LLaVA's count of image slots adds and, for the strategy `default`, takes off again."""


def make_room(processor: Processor, config: Config, extra: int) -> Processor:
    """Sets the processor's image fields from the model's config, with `extra` more slots per image. Idempotent.

    A stock processor may lack `patch_size` (older files); then nothing could be counted at all.
    """
    processor.patch_size = fields.patch_size(config)
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = CLS_TOKENS + extra
    return processor


def slots_per_image(config: Config, extra: int) -> int:
    """Number of `<image>` tokens that one image takes in `input_ids`."""
    cls = CLS_TOKENS if fields.keeps_cls(config) else 0
    return fields.patches_per_side(config) ** 2 + cls + extra


def describe(processor: Processor) -> str:
    """The fields by which a processor counts image slots, for people."""
    return (
        f"patch_size {processor.patch_size}, strategy {processor.vision_feature_select_strategy}, additional image "
        f"tokens {processor.num_additional_image_tokens}"
    )
