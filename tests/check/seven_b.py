"""A folder that looks like llava-hf/llava-1.5-7b-hf and takes no room: its config, and weights that are holes in files.

The names of the weights are those of the published files. The tokenizer knows the miniature's words, and its image
token has the published id.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from safevlm.data.chat import CHAT_TEMPLATE
from safevlm.miniature.words import build_tokenizer

CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
"""The published config.json."""
ON_DISK = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.", ""),
)
"""transformers' names and the published ones; the first that fits."""
BYTES = 2


def write(folder: Path, without: str = "") -> Path:
    """`without`: the published name of a weight that is left out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    _processor().save_pretrained(folder)
    _holes(folder / "model.safetensors", without)
    return folder


def _holes(file: Path, without: str) -> None:
    """A safetensors file with a real header and no blocks on the disk."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(CONFIG))
    table, end = {}, 0
    for name, tensor in model.state_dict().items():
        if (published := _published(name)) != without:
            start, end = end, end + tensor.numel() * BYTES
            table[published] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + end)


def _published(name: str) -> str:
    start, there = next(pair for pair in ON_DISK if name.startswith(pair[0]))
    return there + name.removeprefix(start)


def _processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """The miniature's, with the image token at 32000."""
    table = json.loads(build_tokenizer().backend_tokenizer.to_str())
    place = table["model"]["vocab"]
    place["<unused>"], place["<image>"] = place["<image>"], CONFIG["image_token_index"]
    for token in table["added_tokens"]:
        token["id"] = place[token["content"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
