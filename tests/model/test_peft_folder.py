"""LoRAs of other tools on a llava-hf model: what the stock class with PEFT answers, our engine answers too."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from safevlm.model import loading
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.model.peft_folder import ADAPTER_CONFIG
from safevlm.training.merge import merge
from tests.training import workshop

LM = r".*language_model.*\.(q_proj|down_proj)"
KINDS: dict[str, dict[str, Any]] = {
    "a pattern": {"target_modules": LM},
    "names that fit the vision tower too": {"target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"target_modules": "all-linear"},
    "other ranks and alphas": {
        "target_modules": LM,
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {"down_proj": 32},
    },
    "rank stabilised": {"target_modules": LM, "use_rslora": True},
    "DoRA": {"target_modules": LM, "use_dora": True},
    "projector trained whole": {"target_modules": LM, "modules_to_save": ["multi_modal_projector"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.stock_folder(tmp_path_factory.mktemp("base") / "stock")


def _adapter(base: Path, folder: Path, **kind: Any) -> Path:
    """An adapter whose every weight does something, as PEFT saves it."""
    torch.manual_seed(0)
    made = get_peft_model(
        LlavaForConditionalGeneration.from_pretrained(base),
        LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **kind}),
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    made.save_pretrained(folder)
    return folder


@torch.no_grad()
def _logits(model: Any, base: Path) -> Tensor:
    processor = loading.load_processor(base, loading.load(base).safe_llava.config)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=[Image.new("RGB", (64, 64), (200, 30, 90))], text=text, return_tensors="pt")
    return model(**inputs).logits


def _stock_with(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base), adapter).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_classs_with_the_adapter(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = _adapter(base, tmp_path / "adapter", **KINDS[kind])
    ours = loading.load(adapter, base=base)
    expected = _logits(_stock_with(base, adapter), base)
    assert torch.allclose(_logits(ours.model, base), expected, atol=1e-5)
    assert not torch.allclose(_logits(loading.load(base).model, base), expected, atol=1e-3), "it does nothing"


def _renamed(adapter: Path, rename: Callable[[str], str]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)


OLDER: dict[str, Callable[[str], str]] = {
    "transformers before 4.52": lambda name: re.sub(
        r"^base_model\.model\.model\.(vision_tower|multi_modal_projector)\.", r"base_model.model.\1.", name
    ).replace("base_model.model.model.language_model.", "base_model.model.language_model.model."),
    "an inner vision model": lambda name: re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name),
    "the adapter's name inside": lambda name: re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", name),
}


@pytest.mark.parametrize("naming", OLDER)
def test_names_of_other_releases_are_understood(base: Path, tmp_path: Path, naming: str) -> None:
    kind = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["multi_modal_projector"]}
    adapter = _adapter(base, tmp_path / "adapter", **kind)
    expected = _logits(_stock_with(base, adapter), base)
    _renamed(adapter, OLDER[naming])
    assert torch.allclose(_logits(loading.load(adapter, base=base).model, base), expected, atol=1e-5)


def test_merged_is_unmerged_and_needs_neither_base_nor_adapter(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    expected = _logits(_stock_with(base, adapter), base)
    assert merge(str(adapter), tmp_path / "merged", base=str(base)) < 1e-4
    shutil.rmtree(adapter)
    assert torch.allclose(_logits(loading.load(tmp_path / "merged").model, base), expected, atol=1e-4)


def test_the_base_may_be_named_by_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter", target_modules=LM)
    table = json.loads((adapter / ADAPTER_CONFIG).read_text())
    assert table["base_model_name_or_path"] == str(base)
    assert loading.load(adapter).base == base.resolve()


def _told(folder: Path, base: Path | None, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        loading.load(folder, base=base)
    assert all(part in str(error.value) for part in (str(folder), *parts)) and "\n" not in str(error.value)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "IA3"),
    "no alpha": ({"lora_alpha": 0}, "lora_alpha"),
    "text for a number": ({"lora_alpha": "8"}, "lora_alpha"),
    "a base that was changed": ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "a hub's name": ({"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}, "--base"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_used_is_one_line(base: Path, tmp_path: Path, name: str) -> None:
    adapter = _adapter(base, tmp_path / "adapter", target_modules=LM)
    change, told = CHANGES[name]
    table = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(table | change))
    _told(adapter, None if told == "--base" else base, told)


def test_a_weight_of_another_model_is_named(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter", target_modules=LM)
    _renamed(adapter, lambda name: name.replace("language_model", "thinker"))
    _told(adapter, base, "thinker")


def test_no_class_or_library_that_the_adapter_names_is_imported(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter", target_modules=LM)
    table = json.loads((adapter / ADAPTER_CONFIG).read_text())
    evil = {"base_model_class": "Evil", "parent_library": "evil_library"}
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(table | {"auto_mapping": evil}))
    assert loading.load(adapter, base=base).kind == "adapter"
