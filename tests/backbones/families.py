"""A tiny random model of each family, and its real processor around a byte-level tokenizer: seeded, offline.

Weights are drawn wider than usual, so that what must matter moves the logits.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from safevlm.backbones.processors import OTHERS, images_and_words
from safevlm.backbones.row import Backbone
from safevlm.backbones.table import BACKBONES
from safevlm.config import SafetyConfig
from tests.backbones.templates import SHAPES

WIDTH, VOCABULARY, SIDE, PATCH = 32, 320, 16, 4
STD = 0.1
PAD = "<pad>"


def _tokenizer(row: Backbone, **named: str) -> PreTrainedTokenizerFast:
    """Every byte a token, and special tokens; `named` ones are attributes of the tokenizer too."""
    shape = SHAPES[row.model_type]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token=PAD,
        bos_token=shape.first,
        eos_token=shape.end,
        extra_special_tokens=named or None,
    )
    made.add_tokens(list(shape.tokens), special_tokens=True)
    if shape.first is not None:
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{shape.first} $A", special_tokens=[(shape.first, made.bos_token_id)]
        )
    return made


def _text(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "initializer_range": STD,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **fields,
    }


VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": STD,
}
SIZE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

Made = tuple[Any, Any]
"""Config and processor."""


def _qwen(row: Backbone) -> Made:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = _tokenizer(row, **names, vision_start="<|vision_start|>", vision_end="<|vision_end|>")
    sections = [WIDTH // 32, WIDTH // 32, WIDTH // 16]  # half the width of one of four heads
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    vision: dict[str, Any] = {"depth": 3, "num_heads": 4, "patch_size": PATCH, "initializer_range": STD}
    text = _text(tokenizer, rope_parameters=rope)
    if row.model_type == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "out_hidden_size": WIDTH}
    if row.model_type == "qwen2_5_vl":
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
    if row.model_type == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        text |= {"head_dim": 8, "num_hidden_layers": 3, "rope_parameters": {**rope, "mrope_interleaved": True}}
    if row.model_type == "qwen3_5":
        vision |= {"num_position_embeddings": 64}
        text |= {"head_dim": 8, "num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        text["rope_parameters"] = {**rope, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = row.config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    )
    return config, _processor(row, tokenizer, images, "<|vision_start|><|image_pad|><|vision_end|>")


def _gemma3(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    config = row.config_class(
        text_config=transformers.Gemma3TextConfig(
            **_text(tokenizer, num_key_value_heads=2, head_dim=8, sliding_window=64)
        ),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    images = transformers.Gemma3ImageProcessorPil(size=SIZE)
    return config, _processor(row, tokenizer, images, "<boi>", image_seq_length=4)


def _internvl(row: Backbone) -> Made:
    tokenizer = _tokenizer(
        row,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = row.config_class(
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        vision_config=transformers.InternVLVisionConfig(
            **{**VISION, "image_size": [SIDE] * 2, "patch_size": [PATCH] * 2}
        ),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = transformers.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, _processor(row, tokenizer, images, "<IMG_CONTEXT>", image_seq_length=4)


def _llava_next(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, image_token="<image>")
    config = row.config_class(
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=24),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SIZE, image_grid_pinpoints=PINPOINTS
    )
    counts = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, _processor(row, tokenizer, images, "<image>", **counts)


def _llava_onevision(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, image_token="<image>", video_token="<video>")
    config = row.config_class(
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=PINPOINTS,
    )
    images = transformers.LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=PINPOINTS)
    counts = {"num_image_tokens": (SIDE // PATCH) ** 2, "vision_feature_select_strategy": "full"}
    return config, _processor(row, tokenizer, images, "<image>", **counts)


def _idefics3(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, image_token="<image>")
    marks = ["<fake_token_around_image>", "<global-img>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer.add_tokens(marks, special_tokens=True)
    config = row.config_class(
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        vision_config=VISION,
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = {"idefics3": transformers.Idefics3ImageProcessorPil, "smolvlm": transformers.SmolVLMImageProcessorPil}
    images = kind[row.model_type](size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return config, _processor(row, tokenizer, images, "<image>", image_seq_len=4)


def _mistral3(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, image_token="[IMG]")
    tokenizer.add_tokens(["[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    config = row.config_class(
        text_config=transformers.MistralConfig(**_text(tokenizer), head_dim=8),
        vision_config=transformers.PixtralVisionConfig(**{**VISION, "image_size": 3 * SIDE}, head_dim=8),
        image_token_index=tokenizer.image_token_id,
        spatial_merge_size=2,
    )
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 2 * SIDE}, patch_size=PATCH)
    return config, _processor(row, tokenizer, images, "[IMG]", patch_size=PATCH, spatial_merge_size=2)


def _paligemma(row: Backbone) -> Made:
    tokenizer = _tokenizer(row, image_token="<image>")
    images = transformers.SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = _processor(row, tokenizer, images, "")
    text = _text(tokenizer, vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8)
    config = row.config_class(
        text_config=transformers.GemmaConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**VISION, projection_dim=WIDTH),
        image_token_index=tokenizer.image_token_id,
        projection_dim=WIDTH,
    )
    return config, processor


def _gemma4(row: Backbone) -> Made:
    sound = {"audio_token": "<sound>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
    tokenizer = _tokenizer(row, boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>", **sound)
    images = transformers.Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=2, max_soft_tokens=70)
    processor = _processor(row, tokenizer, images, "<soft>")
    own = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "sliding_window": 64}
    own |= {"vocab_size_per_layer_input": VOCABULARY, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
    kinds = ["sliding_attention", "full_attention"] * 2
    vision = {name: value for name, value in VISION.items() if name != "image_size"}
    config = row.config_class(
        text_config=transformers.Gemma4TextConfig(
            **_text(tokenizer, **own), layer_types=kinds, use_bidirectional_attention="vision"
        ),
        vision_config={**vision, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2},
        audio_config=None,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        video_token_id=processor.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return config, processor


def _llama4(row: Backbone) -> Made:
    tokenizer = _tokenizer(row)
    marks = ["<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>"]
    tokenizer.add_tokens([*marks, "<|tile_x_separator|>", "<|tile_y_separator|>"], special_tokens=True)
    images = row.own_image_processor(size=SIZE, max_patches=4)
    own = {"intermediate_size_mlp": 2 * WIDTH, "num_local_experts": 2, "head_dim": 8, "interleave_moe_layer_step": 2}
    joined = {"projector_input_dim": WIDTH, "projector_output_dim": WIDTH, "vision_output_dim": WIDTH}
    config = row.config_class(
        text_config=transformers.Llama4TextConfig(**_text(tokenizer, **own)),
        vision_config={**VISION, "intermediate_size": 4 * VISION["hidden_size"], "pixel_shuffle_ratio": 0.5, **joined},
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return config, _processor(row, tokenizer, images, "<|image|>", patch_size=PATCH, pixel_shuffle_ratio=0.5)


def _mllama(row: Backbone) -> Made:
    tokenizer = _tokenizer(row)
    tokenizer.add_tokens(["<|python_tag|>", "<|image|>"], special_tokens=True)
    images = transformers.MllamaImageProcessorPil(size=SIZE, max_image_tiles=4)
    text = _text(tokenizer, vocab_size=len(tokenizer) - 1, num_hidden_layers=3, cross_attention_layers=[1])
    text["bos_token_id"] = tokenizer.bos_token_id
    vision = {name: value for name, value in VISION.items() if name != "num_attention_heads"}
    vision |= {"attention_heads": 4, "num_global_layers": 1, "max_num_tiles": 4, "intermediate_layers_indices": [0, 1]}
    config = row.config_class(
        text_config=text,
        vision_config={**vision, "vision_output_dim": 3 * WIDTH},
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    return config, _processor(row, tokenizer, images, "<|image|>")


def _processor(row: Backbone, tokenizer: Any, images: Any, image: str, **fields: Any) -> Any:
    kind = images_and_words(row.processor_class)
    parts = {"tokenizer": tokenizer, "image_processor": images, **dict.fromkeys(OTHERS)}
    template = SHAPES[row.model_type].template.replace("IMAGE", image) or row.chat_template
    given = {name: parts[name] for name in row.processor_class.get_attributes()}
    return kind(**given, chat_template=template, **fields)


MADE: Mapping[str, Callable[[Backbone], Made]] = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_5": _qwen,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "mistral3": _mistral3,
    "paligemma": _paligemma,
    "gemma4": _gemma4,
    "llama4": _llama4,
    "mllama": _mllama,
}


def build(model_type: str) -> tuple[Any, Any]:
    """A stock model of transformers' own class and its processor, `WIDTH` wide."""
    config, processor = MADE[model_type](BACKBONES[model_type])
    torch.manual_seed(0)
    model = BACKBONES[model_type].model_class(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("image_newline", "mm_input_projection_weight", "gate", "gate_attn", "gate_ffn")):
            # zeros, before training
            torch.nn.init.normal_(weight, std=STD)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


_shared = functools.cache(build)


def stock(model_type: str) -> tuple[Any, Any]:
    """`build`, from a store; model and processor are the caller's own."""
    return copy.deepcopy(_shared(model_type))


def saved(model_type: str, folder: Path) -> Path:
    """The folder of the stock model, as a user has it."""
    model, processor = stock(model_type)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def saved_whole(model_type: str, folder: Path) -> Path:
    """`saved`, with a processor that cuts no image into tiles, as far as it can be told so."""
    model, processor = stock(model_type)
    if getattr(processor.image_processor, "crop_to_patches", False):
        processor.image_processor.max_patches = 1
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


SAFETY = SafetyConfig(
    projector="resampler",
    projector_width=16,
    projector_depth=1,
    projector_tokens=4,
    lm_tokens=3,
    head_tokens=2,
    head_heads=4,
)
"""Safety modules of a size with these models."""
QUICK = ("qwen3_vl", "gemma3", "llava_next")
"""Families whose contract the fast tests check: flattened patches with deep features, squares, tiles."""
TELLING = (*QUICK, "mistral3", "paligemma")
"""One family of each kind: the quick ones, images in rows with a token between them, and a prompt without roles."""


ANSWERING = tuple(name for name, row in BACKBONES.items() if not row.looks_only)


def each(names: Iterable[str] = ANSWERING) -> pytest.MarkDecorator:
    """A test for each family, the quick ones among the fast tests."""
    return pytest.mark.parametrize("family", [pytest.param(name, marks=marks(name)) for name in names])


def few(names: Iterable[str] = ANSWERING, telling: Iterable[str] = TELLING) -> pytest.MarkDecorator:
    """`each`, for what takes long: those that are `telling`, and the others among the thorough tests."""
    return pytest.mark.parametrize("family", [pytest.param(name, marks=few_marks(name, telling)) for name in names])


def few_marks(family: str, telling: Iterable[str] = TELLING) -> list[pytest.MarkDecorator]:
    """`marks`, and `thorough` where a family that is `telling` tells the same."""
    return marks(family) + ([] if family in telling else [pytest.mark.thorough])


def _absent(family: str) -> list[str]:
    """Packages that a family needs and that are not installed."""
    return [name for name in BACKBONES[family].needs if importlib.util.find_spec(name) is None]


def marks(family: str) -> list[pytest.MarkDecorator]:
    absent = _absent(family)
    skipped = [pytest.mark.skip(reason=f"{absent[0]} is not installed")] if absent else []
    return skipped + ([] if family in QUICK else [pytest.mark.slow])


INSTALLED = tuple(family for family in ANSWERING if not _absent(family))


def image(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """Colours at random."""
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())
