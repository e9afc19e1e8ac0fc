"""Folds a LoRA into the LLM and proves it: the merged model's logits against the unmerged one's, or nothing is kept.

All of it in float32, on the un-quantised base, whatever the run was trained on; only then are weights rounded to the
type asked for. A LoRA merged into a 4-bit base misses by more than the logits' own size (base facts §4.3).
"""

from __future__ import annotations

import gc
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.data import atomic_write, chat
from safevlm.data.pixels import Pixels, read_images, slot_texts
from safevlm.model import card, checkpoint_folder, export, families, loading, stored
from safevlm.model.checkpoint_folder import BROKEN
from safevlm.model.safety_modules import is_safety_name
from safevlm.types import Request

log = logging.getLogger(__name__)

QUESTIONS = ("What is in the picture?", "Describe what you see and say whether it is safe.")
DType = Literal["float32", "bfloat16", "float16"]
SIDE = 64
"""Pixels on the side of the image that merged models are tried on, where a family takes images of any size."""
BESIDES = 1.15
"""The LoRA (r 256 on 7B: a tenth of the weights) and copies of single layers come on top."""


@dataclass(frozen=True)
class MergeResult:
    """What became of a merge; differences are the largest of any logit, relative to the largest logit."""

    difference: float
    """Of merging, in float32, and of writing and reading again."""
    rounding: float
    """Of the type that the weights were written in; 0 for float32."""
    lm_tokens: int
    """Learned tokens in front of every image; a stock model cannot carry them."""
    stock: bool
    dtype: DType


def merge(path: str, out: Path, **options: Any) -> float:
    """`fold`, for who wants one number: the largest difference before any rounding."""
    return fold(path, out, **options).difference


def fold(
    path: str,
    out: Path,
    *,
    base: str | None = None,
    tolerance: float = 1e-3,
    dtype: DType = "float32",
    stock: bool = False,
) -> MergeResult:
    """Any checkpoint of ours → one complete folder that needs neither adapter nor base.

    It is of kind `full`, or with `stock` of kind `guarded`: a plain model and our files beside it. ValueError when
    the merged logits differ by more than the tolerance, or rounded weights are no numbers; then nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: exists already and is not empty; remove it or choose another folder")
    _tell_needs(path, out, getattr(torch, dtype))
    loaded = loading.load(path, base=base)
    stored.check_finite(dict(loaded.model.named_parameters()), path, "nothing was written")
    probe = _probe(loaded)
    before = _logits(loaded.model, probe)
    merged = loaded.model.merge_and_unload() if loaded.kind == "adapter" else loaded.model
    difference = _within(tolerance, path, _relative(before, _logits(merged, probe)))
    _round(merged, getattr(torch, dtype))
    rounded = _logits(merged, probe)
    rounding = _relative(before, rounded) if dtype != "float32" else 0.0
    if not rounding < float("inf"):
        raise ValueError(f"{path}: as {dtype} some logits are no numbers; use --dtype bfloat16; nothing was written")
    tokens = merged.config.safety_config.lm_tokens
    with atomic_write.atomic_folder(out) as folder:
        _cast(merged, getattr(torch, dtype))
        (_save_stock if stock else _save)(merged, loaded, folder)
        source, origin, config = loaded.path, loaded.base, merged.config
        del merged, loaded  # the model is read again below; two of them in memory would be one too many
        gc.collect()
        difference = max(difference, _within(tolerance, path, _relative(rounded, _reread(folder, probe))))
        for name in ("recipe.yaml", "run.json"):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        run = (folder / card.RUN).read_text(encoding="utf-8") if (folder / card.RUN).is_file() else None
        card.write(folder, config, "guarded" if stock else "full", origin, run)
    return MergeResult(difference, rounding, tokens, stock, dtype)


def describe(merged: MergeResult, out: str, tolerance: float) -> str:
    """What was done, for a person."""
    lines = [f"merged into {out}; largest difference of a logit {merged.difference:.2e} (tolerance {tolerance:.0e})"]
    if merged.dtype != "float32":
        lines.append(f"written as {merged.dtype}; that moves a logit by up to {merged.rounding:.2e} of the largest")
    if merged.stock:
        place = Path(out) / export.SIDECAR
        lines.append(f"a plain model of its family; its guard is in {place}, for `safevlm chat --model {out}`")
    if merged.stock and merged.lm_tokens:
        lines.append(f"{merged.lm_tokens} LM tokens are in {export.SIDECAR}/ only: a stock server answers without them")
    return "\n".join(lines)


def _tell_needs(path: str, out: Path, dtype: torch.dtype) -> None:
    """Before anything is loaded: one that runs out of memory is killed without a word. WriteError: a full disk."""
    try:
        folder = checkpoint_folder.resolve(path)
        config = checkpoint_folder.config_of(folder, checkpoint_folder.kind_of(folder), None)
        with torch.device("meta"):
            model = families.classes_of(config).model(config)
    except BROKEN:
        return  # loading says better what is wrong
    weights = sum(weight.numel() for weight in model.parameters())
    needed = weights * torch.float32.itemsize * BESIDES / 1e9
    log.info("merging %.0f M weights in float32: needs about %.2f GB of memory", weights / 1e6, needed)
    atomic_write.need_room(out, weights * dtype.itemsize)


def _within(tolerance: float, path: str, difference: float) -> float:
    if not difference <= tolerance:  # not a number is no agreement either
        raise ValueError(
            f"{path}: merged logits differ by {difference:.2e} of the largest, over the tolerance {tolerance:.0e}; "
            "nothing was written"
        )
    return difference


def _round(model: Any, dtype: torch.dtype) -> None:
    """Gives the weights the values that they will have on disk; the type stays, to compute in. Ours stay float32."""
    for name, weight in model.named_parameters():
        if not is_safety_name(name):
            weight.data = weight.data.to(dtype).float()


def _cast(model: Any, dtype: torch.dtype) -> None:
    for name, weight in model.named_parameters():
        if not is_safety_name(name):
            weight.data = weight.data.to(dtype)


def _save(model: Any, loaded: loading.Loaded, folder: Path) -> None:
    _clean(model)
    model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def _save_stock(model: Any, loaded: loading.Loaded, folder: Path) -> None:
    _clean(model)
    export.write(model, loaded.processor, folder, loaded.path.name)


def _clean(model: Any) -> None:
    # a temperature without sampling is refused on save (base facts §1, row 11)
    if not model.generation_config.do_sample:
        model.generation_config.temperature = model.generation_config.top_p = None


def _reread(folder: Path, probe: list[dict[str, Any]]) -> list[Tensor]:
    return _logits(loading.load(folder).model, probe)


def _probe(loaded: loading.Loaded) -> list[dict[str, Any]]:
    """Prompts with a random image, and one without."""
    model, processor = loaded.safe_llava, loaded.processor
    pixels = _noise(loaded)
    further = {"images_per_row": [1]} if isinstance(pixels, ImageInputs) else {}
    slots = slot_texts(processor, pixels, model.slots or 0)
    asked = chat.prompts(processor, [Request(text, images=("",)) for text in QUESTIONS], [slots] * len(QUESTIONS))
    words = torch.tensor([chat.prompt_ids(processor, Request(QUESTIONS[1]), 0)])
    shown = [{"input_ids": torch.tensor([prompt.ids]), "pixel_values": pixels, **further} for prompt in asked]
    return [*shown, {"input_ids": words}]


def _noise(loaded: loading.Loaded) -> Pixels:
    """A random image as the model reads it."""
    generator, model = torch.Generator().manual_seed(0), loaded.safe_llava
    if model.slots is not None:
        return torch.randn(1, *model.pixel_shape, generator=generator)
    values = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return read_images(loaded.processor, [[Image.fromarray(values.numpy())]])


@torch.no_grad()
def _logits(model: Any, probe: list[dict[str, Any]]) -> list[Tensor]:
    return [model(**inputs).logits for inputs in probe]


def _relative(before: list[Tensor], after: list[Tensor]) -> float:
    return max(((b - a).abs().max() / b.abs().max()).item() for b, a in zip(before, after, strict=True))
