"""The pretrained language model, its tokenizer in LLaVA's prompt, and the processor of both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from llava_patch import fresh
from llava_patch.classes import Config, Processor
from llava_patch.pretrained import from_folder
from safevlm.data import chat
from safevlm.pictograms.base.sizes import TOWER
from safevlm.pictograms.world import THINGS

END = "</s>"
"""How LLaVA's template ends an answer."""
IMAGE = "<image>"
GGUF = ".gguf"


def load_tokenizer(place: Path) -> PreTrainedTokenizerFast:
    """The LLM's own tokenizer with LLaVA's two tokens; it begins every text with the first token."""
    folder, options = _source(place)
    tokenizer: PreTrainedTokenizerFast = from_folder(AutoTokenizer, folder, padding_side="left", **options)
    old_end, first = tokenizer.eos_token, tokenizer.bos_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"eos_token": END, "additional_special_tokens": [IMAGE]})
    tokenizer.pad_token = old_end if old_end != END else tokenizer.pad_token or first
    tokenizer.bos_token = first
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.convert_tokens_to_ids(first))]
    )
    return tokenizer


def load_llm(place: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The LLM in float32, with rows for the new tokens; the end of an answer takes the place of its old one.

    ImportError: a GGUF file, and no gguf.
    """
    folder, options = _source(place)
    llm = _plain(from_folder(AutoModelForCausalLM, folder, dtype=torch.float32, **options))
    old_end = llm.config.eos_token_id
    old_end = old_end[0] if isinstance(old_end, list) else old_end
    known = llm.get_input_embeddings().num_embeddings
    llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {llm.get_input_embeddings().weight, llm.get_output_embeddings().weight}:
            table[known:] = table[:known].mean(0)  # transformers draws them, anew each time
            if tokenizer.eos_token_id != old_end:
                table[tokenizer.eos_token_id] = table[old_end]
                table[old_end] = 0.0  # else both would be said alike
    for config in (llm.config, llm.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return llm


def _plain(llm: Any) -> Any:
    """The same model without the mark that it came out of a quantised file, with which it could not be saved."""
    if not hasattr(llm.config, "quantization_config"):
        return llm
    del llm.config.quantization_config
    plain = type(llm)(llm.config)
    plain.load_state_dict(llm.state_dict())
    return plain


@torch.no_grad()
def name_vectors(llm: Any, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(things, d): the mean of the embeddings of each thing's name."""
    ids = [tokenizer(f" {thing.name}", add_special_tokens=False)["input_ids"] for thing in THINGS]
    return torch.stack([llm.get_input_embeddings().weight[one].mean(0) for one in ids])


def llava_config(llm: Any, tokenizer: PreTrainedTokenizerFast) -> Config:
    """Of a LLaVA with this LLM's config and the world's tower."""
    text = llm.to_dict()
    image: Any = tokenizer.convert_tokens_to_ids(IMAGE)
    config = fresh.config_of(text, TOWER, image_token_id=image, pad_token_id=tokenizer.pad_token_id)
    config.tie_word_embeddings = bool(llm.tie_word_embeddings)
    return config


def processor_of(llm: Any, tokenizer: PreTrainedTokenizerFast) -> Processor:
    """LLaVA's processor for 96-pixel images."""
    return fresh.processor_of(tokenizer, llava_config(llm, tokenizer), chat.CHAT_TEMPLATE)


def image_processor_of(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Of 96-pixel images, before there is an LLM."""
    return processor_of(LlamaConfig(), tokenizer).image_processor


def _source(place: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and options of `from_pretrained`. FileNotFoundError: nothing is there."""
    if not place.exists():
        raise FileNotFoundError(f"{place}: no language model; give a folder, or a GGUF file: --llm")
    if place.suffix != GGUF:
        return place, {}
    try:
        importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError(f"{place} is read with gguf: pip install -e '.[pictograms]'") from error
    return place.parent, {"gguf_file": place.name}
