"""Published models of each family as configs: widths, layers and vocabularies, from their config.json.

No weights: tests build these models on the meta device, where a parameter has a shape and no numbers, and
`scripts/gpu_check.sh` draws them at random (`safevlm.backbones.measured`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers


@dataclass(frozen=True)
class Published:
    """A model that people run."""

    family: str
    billions: float
    """Parameters, as its makers count them."""
    config: dict[str, Any]


def _llm(width: int, layers: int, heads: int, keys: int, inner: int, words: int, **further: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": words,
        **further,
    }


def _tower(width: int, layers: int, heads: int, inner: int, side: int, patch: int, kind: str = "") -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "image_size": side,
        "patch_size": patch,
        **({"model_type": kind} if kind else {}),
    }


SIGLIP = _tower(1152, 27, 16, 4304, 384, 14, "siglip_vision_model")
QWEN2_7B = _llm(3584, 28, 28, 4, 18944, 152064, model_type="qwen2")
QWEN3_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "num_heads": 16,
    "intermediate_size": 4304,
    "out_hidden_size": 4096,
    "patch_size": 16,
    "num_position_embeddings": 2304,
}
PUBLISHED = {
    "Qwen2.5-VL-7B": Published(
        "qwen2_5_vl",
        8.29,
        {
            "text_config": _llm(
                3584,
                28,
                28,
                4,
                18944,
                152064,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            ),
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "num_heads": 16,
                "intermediate_size": 3420,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
    ),
    "Qwen3-VL-8B": Published(
        "qwen3_vl",
        8.77,
        {
            "text_config": _llm(4096, 36, 32, 8, 12288, 151936, head_dim=128),
            "vision_config": {**QWEN3_TOWER, "deepstack_visual_indexes": [8, 16, 24]},
        },
    ),
    "Gemma-3-12B": Published(
        "gemma3",
        12.19,
        {
            "text_config": _llm(3840, 48, 16, 8, 15360, 262208, head_dim=256, model_type="gemma3_text"),
            "vision_config": {**SIGLIP, "image_size": 896, "vision_use_head": False},
            "mm_tokens_per_image": 256,
        },
    ),
    "InternVL3-8B": Published(
        "internvl",
        7.94,
        {
            "text_config": {**QWEN2_7B, "vocab_size": 151674},
            "vision_config": {**_tower(1024, 24, 16, 4096, 448, 14), "image_size": [448, 448], "patch_size": [14, 14]},
            "tie_word_embeddings": False,
        },
    ),
    "LLaVA-NeXT-8B": Published(
        "llava_next",
        8.36,
        {
            "text_config": _llm(4096, 32, 32, 8, 14336, 128320, model_type="llama"),
            "vision_config": _tower(1024, 24, 16, 4096, 336, 14, "clip_vision_model"),
        },
    ),
    "LLaVA-OneVision-7B": Published(
        "llava_onevision",
        8.03,
        {
            "text_config": {**QWEN2_7B, "vocab_size": 152000},
            "vision_config": {**SIGLIP, "num_hidden_layers": 26, "vision_use_head": False},
        },
    ),
    "SmolVLM2-2.2B": Published(
        "smolvlm",
        2.25,
        {
            "text_config": _llm(2048, 24, 32, 32, 8192, 49280, model_type="llama"),
            "vision_config": _tower(1152, 27, 16, 4304, 384, 14),
            "scale_factor": 3,
        },
    ),
    "Mistral-Small-3.1-24B": Published(
        "mistral3",
        24.01,
        {
            "text_config": _llm(5120, 40, 32, 8, 32768, 131072, head_dim=128, model_type="mistral"),
            "vision_config": _tower(1024, 24, 16, 4096, 1540, 14, "pixtral"),
            "spatial_merge_size": 2,
            "tie_word_embeddings": False,
        },
    ),
    "PaliGemma2-3B": Published(
        "paligemma",
        3.03,
        {
            "text_config": _llm(2304, 26, 8, 4, 9216, 257216, head_dim=256, model_type="gemma2"),
            "vision_config": {**SIGLIP, "image_size": 224, "vision_use_head": False},
            "projection_dim": 2304,
        },
    ),
    "Qwen3.5-9B": Published(
        "qwen3_5",
        9.41,
        {
            "text_config": _llm(
                4096,
                32,
                16,
                4,
                12288,
                248320,
                head_dim=256,
                linear_num_key_heads=16,
                linear_num_value_heads=32,
                linear_key_head_dim=128,
                linear_value_head_dim=128,
            ),
            "vision_config": QWEN3_TOWER,
        },
    ),
    "Gemma-4-31B": Published(
        "gemma4",
        31.27,
        {
            "text_config": _llm(
                5376,
                60,
                32,
                16,
                21504,
                262144,
                head_dim=256,
                global_head_dim=512,
                num_global_key_value_heads=4,
                attention_k_eq_v=True,
                hidden_size_per_layer_input=0,
                sliding_window=1024,
            ),
            "vision_config": {
                "hidden_size": 1152,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
                "head_dim": 72,
                "intermediate_size": 4304,
                "standardize": True,
            },
            "audio_config": None,
        },
    ),
    "Llama-4-Scout-17B-16E": Published(
        "llama4",
        108.64,
        {
            "text_config": _llm(5120, 48, 40, 8, 8192, 202048, intermediate_size_mlp=16384, num_local_experts=16),
            "vision_config": {**_tower(1408, 34, 16, 5632, 336, 14), "vision_output_dim": 4096},
        },
    ),
}


def config_of(model: Published) -> Any:
    """The stock config."""
    kind = {
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen3_vl": transformers.Qwen3VLConfig,
        "gemma3": transformers.Gemma3Config,
        "internvl": transformers.InternVLConfig,
        "llava_next": transformers.LlavaNextConfig,
        "llava_onevision": transformers.LlavaOnevisionConfig,
        "smolvlm": transformers.SmolVLMConfig,
        "mistral3": transformers.Mistral3Config,
        "paligemma": transformers.PaliGemmaConfig,
        "qwen3_5": transformers.Qwen3_5Config,
        "gemma4": transformers.Gemma4Config,
        "llama4": transformers.Llama4Config,
    }[model.family]
    return kind(**model.config)
