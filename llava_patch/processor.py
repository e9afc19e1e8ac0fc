"""Room for K extra tokens in every image of the prompt."""

from __future__ import annotations

from transformers import LlavaConfig, LlavaProcessor

CLS_TOKENS = 1
"""CLIP's own CLS, which LLaVA's count of image slots adds and, for the strategy `default`, takes off again."""


def make_room(processor: LlavaProcessor, config: LlavaConfig, extra: int) -> LlavaProcessor:
    """Sets the processor's image fields from the model's config, with `extra` more slots per image. Idempotent.

    A stock processor may lack `patch_size` (older files); then nothing could be counted at all.
    """
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = CLS_TOKENS + extra
    return processor


def slots_per_image(config: LlavaConfig, extra: int) -> int:
    """Number of `<image>` tokens that one image takes in `input_ids`."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    cls = 0 if config.vision_feature_select_strategy == "default" else CLS_TOKENS
    return side * side + cls + extra
