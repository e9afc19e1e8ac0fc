"""llava-hf folders as they were and are published: sharded or not, old and new key names, old and new side files.

Each must load with the stock class's logits, bit for bit, and anything missing or left over must be an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_patch.original import vocabulary
from safevlm.config import SafetyConfig
from safevlm.data import chat
from safevlm.model import loading, saving
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.types import Request
from tests import originals, tiny

Names = Callable[[str], str]
IMAGE, PAD, ROWS = 420, 421, 448
QUESTION = Request("What is this?", images=("",))


def _published(name: str) -> str:
    """Weight in memory → llava-1.5-7b-hf's name on disk (2023 to this day)."""
    for pattern, target in (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    ):
        name = re.sub(pattern, target, name)
    return name


NAMINGS: dict[str, Names] = {
    "published": _published,
    "saved by transformers 5": lambda name: _published(name).replace("vision_model.", ""),
    "in memory": lambda name: name,
    "in memory, 4.52 to 4.57": lambda name: name.replace("model.vision_tower.", "model.vision_tower.vision_model."),
}
"""What `save_pretrained` of one version or another has written."""


def _model() -> LlavaForConditionalGeneration:
    """A stock LLaVA with the words of tests/originals.py, its rows filled up as llava-hf's are."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision()),
        text_config=LlamaConfig(**_text()),
        image_token_index=IMAGE,
        pad_token_id=PAD,
        image_seq_length=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlavaForConditionalGeneration(config).eval()


def _text() -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": ROWS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
    }


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": originals.SIDE,
        "patch_size": originals.PATCH,
        "projection_dim": 24,
    }


def _old_side_files(folder: Path) -> None:
    """config.json and preprocessing of 2023: few fields, no patch_size, no processor fields."""
    originals.write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": IMAGE,
            "model_type": "llava",
            "pad_token_id": PAD,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
            "text_config": {
                "_name_or_path": "lmsys/vicuna-7b-v1.5",
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "torch_dtype": "float16",
                **_text(),
            },
            "torch_dtype": "float16",
            "transformers_version": "4.36.0.dev0",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vision_config": {"model_type": "clip_vision_model", **_vision()},
            "vocab_size": ROWS,
        },
    )
    preprocessor = {
        "crop_size": {"height": originals.SIDE, "width": originals.SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": originals.MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": originals.STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": originals.SIDE},
    }
    originals.write_json(folder / "preprocessor_config.json", {**preprocessor, "processor_class": "LlavaProcessor"})
    originals.write_json(folder / "processor_config.json", {"processor_class": "LlavaProcessor"})


def _tokenizer(folder: Path) -> None:
    """llava-hf's files: a legacy tokenizer.json, and a config that names the Llama class."""
    originals.write_tokenizer(folder / "words", legacy=True)
    vocabulary.from_folder(folder / "words").save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    table |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "processor_class": "LlavaProcessor"}
    for name in ("backend", "extra_special_tokens", "image_token"):
        table.pop(name, None)
    originals.write_json(file, table)


def _folder(folder: Path, naming: Names = _published, change: Callable[[dict[str, Tensor]], Any] | None = None) -> Path:
    """An old-style folder, sharded."""
    tensors = {naming(name): tensor.clone() for name, tensor in _model().state_dict().items()}
    if change:
        change(tensors)
    originals.write_safetensors_shards(folder, tensors)
    _old_side_files(folder)
    _tokenizer(folder)
    return folder


def _inputs(loaded: loading.Loaded) -> dict[str, Tensor]:
    text = chat.prompt_text(loaded.processor, QUESTION)
    return loaded.processor(text=text, images=[originals.image(40, 40)], return_tensors="pt")


@torch.no_grad()
def _logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


@pytest.mark.parametrize("name", NAMINGS)
def test_every_naming_gives_the_stock_logits(tmp_path: Path, name: str) -> None:
    loaded = loading.load(_folder(tmp_path / "llava", NAMINGS[name]))
    assert loaded.kind == "stock"
    inputs = _inputs(loaded)
    assert torch.equal(_logits(loaded.model, inputs), _logits(_model(), inputs)), "weights went astray"


def test_stock_class_reads_the_published_naming(tmp_path: Path) -> None:
    """Guards this file: what it calls published is what the stock class knows."""
    folder = _folder(tmp_path / "llava")
    stock, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = _inputs(loading.load(folder))
    assert torch.equal(_logits(stock.eval(), inputs), _logits(_model(), inputs))


def test_one_file_loads_like_shards(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "llava")
    before = _logits((loaded := loading.load(folder)).model, _inputs(loaded))
    _model().save_pretrained(folder)
    for shard in [*folder.glob("model-*.safetensors"), folder / "model.safetensors.index.json"]:
        shard.unlink()
    _old_side_files(folder)
    assert torch.equal(_logits((again := loading.load(folder)).model, _inputs(again)), before)


def test_old_processor_files_make_room_for_every_patch(tmp_path: Path) -> None:
    """They have no patch_size, without which nothing can be counted (base facts §3.4)."""
    loaded = loading.load(_folder(tmp_path / "llava"))
    inputs = _inputs(loaded)
    assert (inputs["input_ids"] == IMAGE).sum() == 16 == loaded.safe_llava.slots
    assert torch.allclose(inputs["pixel_values"], originals.pixels_of(originals.image(40, 40), pad=False), atol=1e-5)


def test_prompt_has_the_originals_ids(tmp_path: Path) -> None:
    """llava-hf's tokenizer.json puts `▁` behind the image, as the original does; its class alone would not."""
    folder = _folder(tmp_path / "llava")
    loaded = loading.load(folder)
    text = chat.prompt_text(loaded.processor, QUESTION)
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == originals.ids_of(text, image=IMAGE)
    assert chat.prompt_ids(loaded.processor, QUESTION, 1) == originals.ids_of(text, image=IMAGE)


def test_prompt_keeps_its_ids_in_checkpoints_of_ours(tmp_path: Path) -> None:
    """A checkpoint of ours has another model_type, for which transformers knows nothing of tokenizers."""
    loaded = loading.load(_folder(tmp_path / "llava"), safety=SafetyConfig(**tiny.SAFETY))
    (tmp_path / "ours").mkdir()
    saving.save(loaded, loaded.model, tmp_path / "ours")
    again = loading.load(tmp_path / "ours")
    text = chat.prompt_text(again.processor, QUESTION)
    assert again.processor.tokenizer(text)["input_ids"] == originals.ids_of(text, image=IMAGE)


def test_config_of_2023_is_read_whole(tmp_path: Path) -> None:
    config = loading.load(_folder(tmp_path / "llava")).model.config
    assert (config.image_token_id, config.pad_token_id, config.text_config.vocab_size) == (IMAGE, PAD, ROWS)
    assert config.text_config.num_key_value_heads == 4
    assert config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert config.vision_config.hidden_act == "quick_gelu"


def _error(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        loading.load(folder)
    for part in (str(folder), *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMINGS)
@pytest.mark.parametrize("lost", ["lm_head.weight", "linear_2.bias", "layers.1.mlp.up_proj.weight", "class_embedding"])
def test_missing_weight_is_an_error(tmp_path: Path, name: str, lost: str) -> None:
    def lose(tensors: dict[str, Tensor]) -> None:
        found = [key for key in tensors if key.endswith(lost)]
        assert len(found) == 1
        tensors.pop(found[0])

    _error(_folder(tmp_path / "llava", NAMINGS[name], lose), "1 weights missing", lost)


@pytest.mark.parametrize(
    "extra",
    [
        "language_model.model.layers.2.mlp.up_proj.weight",
        "multi_modal_projector.linear_3.bias",
        "safe_head.weight",
    ],
)
def test_unexpected_weight_is_an_error(tmp_path: Path, extra: str) -> None:
    _error(_folder(tmp_path / "llava", change=lambda tensors: tensors.update({extra: torch.ones(3)})), "unexpected")


def test_weight_of_another_shape_is_an_error(tmp_path: Path) -> None:
    name = "multi_modal_projector.linear_1.bias"
    folder = _folder(tmp_path / "llava", change=lambda tensors: tensors.update({name: torch.ones(3)}))
    _error(folder, "of another shape")


def test_missing_shard_is_an_error(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "llava")
    (folder / "model-00002-of-00003.safetensors").unlink()
    _error(folder)


def test_index_and_shards_that_differ_are_an_error(tmp_path: Path) -> None:
    """A shard of another download: what the index promises is not in it."""
    folder = _folder(tmp_path / "llava")
    file = folder / "model-00002-of-00003.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file, metadata={"format": "pt"})
    _error(folder)
