"""Folds a LoRA into the LLM and proves it: the merged model's logits against the unmerged one's, or nothing is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safevlm.data import chat
from safevlm.model import loading
from safevlm.types import Request

QUESTIONS = ("What is in the picture?", "Describe what you see and say whether it is safe.")


def merge(path: str, out: Path, *, base: str | None = None, tolerance: float = 1e-3) -> float:
    """Any checkpoint of ours → one complete folder (kind `full`) that needs neither adapter nor base.

    Merges in float32 on the un-quantised base. Returns the largest difference of a logit relative to the largest
    logit. ValueError when it exceeds the tolerance; then nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: exists already and is not empty; remove it or choose another folder")
    loaded = loading.load(path, base=base)
    probe = _probe(loaded)
    before = _logits(loaded.model, probe)
    merged = loaded.model.merge_and_unload() if loaded.kind == "adapter" else loaded.model
    difference = _relative(before, _logits(merged, probe))
    with loading.written_atomically(out) as folder:
        _save(merged, loaded, folder)
        reread = loading.load(folder)
        difference = max(difference, _relative(before, _logits(reread.model, probe)))
        if difference > tolerance:
            raise ValueError(
                f"{path}: merged logits differ by {difference:.2e} of the largest, over the tolerance {tolerance:.0e}; "
                "nothing was written"
            )
        for name in ("recipe.yaml", "run.json"):
            if (loaded.path / name).is_file():
                shutil.copy(loaded.path / name, folder / name)
    return difference


def _save(model: Any, loaded: loading.Loaded, folder: Path) -> None:
    # a temperature without sampling is refused on save (base facts §1, row 11)
    if not model.generation_config.do_sample:
        model.generation_config.temperature = model.generation_config.top_p = None
    model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def _probe(loaded: loading.Loaded) -> list[dict[str, Tensor]]:
    """Prompts with a random picture, and one without."""
    model = loaded.safe_llava
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = [torch.tensor([chat.prompt_ids(loaded.processor, _with_picture(text), model.slots)]) for text in QUESTIONS]
    words = torch.tensor([chat.prompt_ids(loaded.processor, Request(QUESTIONS[1]), 0)])
    return [*({"input_ids": row, "pixel_values": pixels} for row in ids), {"input_ids": words}]


def _with_picture(text: str) -> Request:
    return Request(text, images=("",))


@torch.no_grad()
def _logits(model: Any, probe: list[dict[str, Tensor]]) -> list[Tensor]:
    return [model(**inputs).logits for inputs in probe]


def _relative(before: list[Tensor], after: list[Tensor]) -> float:
    return max(((b - a).abs().max() / b.abs().max()).item() for b, a in zip(before, after, strict=True))
