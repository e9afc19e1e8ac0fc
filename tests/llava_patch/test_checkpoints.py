"""Weight names: a subclass of LLaVA defined outside transformers reads and writes the stock class's names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from llava_patch import checkpoints
from tests import tiny


class MappedLlava(LlavaForConditionalGeneration):
    """Stands for any subclass of a user's."""


def test_mapped_subclass_reads_stock_weights_and_writes_stock_names(tmp_path: Path) -> None:
    checkpoints.keep_llava_names("MappedLlava")
    checkpoints.keep_llava_names("MappedLlava")  # a second import of a module must not raise
    stock = tiny.stock_llava()
    stock.save_pretrained(tmp_path / "stock")
    mapped, info = MappedLlava.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], f"names are not converted: {info}"
    assert torch.equal(mapped.lm_head.weight, stock.lm_head.weight)
    mapped.save_pretrained(tmp_path / "mapped")
    names = []
    for folder in ("stock", "mapped"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
