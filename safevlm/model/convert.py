"""Original LLaVA-v1.5 folders → the llava-hf layout that everything else here reads (`safevlm convert`).

    SRC (full, projector, LoRA) ─┐
    --base (Vicuna, LLaVA) ──────┼─▶ names ─▶ LoRA folded (float32) ─▶ rows for <image>, <pad> ─▶ shards of 5 GB
    --vision-tower (CLIP) ───────┘

What a folder is, is read from its contents (`llava_patch.original`). Nothing appears under `--out` before every weight
has been found, written, read again and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from llava_patch import fields, weights
from llava_patch.classes import Model
from llava_patch.original import assembly, processor, sources, vocabulary
from llava_patch.original import config as configs
from llava_patch.original.folder import Kind
from safevlm.data import atomic_write, chat
from safevlm.model import loading
from safevlm.types import Request

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Report:
    """What was converted."""

    kind: Kind
    weights: int
    folded: int
    """Weights with a LoRA on them."""
    vocabulary: int
    """Rows of the embedding table, new ones included."""
    pads_to_square: bool
    dtype: str


def convert(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
) -> Report:
    """Writes the folder `source` in transformers' layout to `out`, which must be empty or absent.

    `base`: the LLM's folder, where `source` has none; `vision_tower`: a CLIP folder; `tokenizer`: one with a
    sentencepiece model. `dtype`: of the written weights; none: that of the LLM on disk. ValueError, naming file, flag
    and fix: something is missing, left over, or cannot be expressed in transformers' LLaVA.
    """
    folder, target = Path(source), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out {target}: exists already and is not empty; remove it or choose another folder")
    found = sources.find(folder, _optional(base), _optional(vision_tower))
    where = folder / "config.json"
    configs.refuse_markers(found.table, where)
    padded = configs.pads_to_square(found.table, where)
    words = vocabulary.from_folder(sources.tokenizer_folder(found, _optional(tokenizer)))
    config = configs.config_of(found.table, found.text, sources.tower_config(found), where)
    places = assembly.with_identity(found, config)
    rows = assembly.set_vocabulary(config, words, places, found.text_folder)
    assembly.check_names(places, config, rows, found)
    config.dtype = wanted = DTYPES[dtype] if dtype else assembly.dtype_of(places)
    made = processor.processor_of(found, config, words, padded, chat.CHAT_TEMPLATE)
    with atomic_write.atomic_folder(target) as made_in:
        assembly.write(made_in, found, places, config, wanted, shard_bytes)
        config.architectures = [Model.__name__]
        config.save_pretrained(made_in)
        made.save_pretrained(made_in)
        processor.generation_of(found, config).save_pretrained(made_in)
        _check(made_in, wanted)
    folded = len(found.adapter.pairs) if found.adapter else 0
    name = str(wanted).removeprefix("torch.")
    return Report(found.kind, len(places), folded, fields.vocabulary_size(config), padded, name)


def describe(report: Report, out: str | Path) -> str:
    """One line for people."""
    folded = f", LoRA folded into {report.folded} of them" if report.folded else ""
    images = "padded to a square" if report.pads_to_square else "cropped at the centre"
    return (
        f"converted ({report.kind}) into {out}: {report.weights} weights in {report.dtype}{folded}; vocabulary of "
        f"{report.vocabulary} rows; images {images}"
    )


def _check(folder: Path, dtype: torch.dtype) -> None:
    """Loads what was written, and lets its processor prepare an image for its model."""
    loaded = loading.load(folder, dtype=dtype)
    image = Image.new("RGB", (40, 30), (90, 120, 30))
    text = chat.prompt_text(loaded.processor, Request("What is this?", images=(image,)))
    inputs = loaded.processor(text=text, images=[image], return_tensors="pt")
    model = loaded.safe_llava
    images, pixels = model.images_per_row(inputs["input_ids"]), tuple(inputs["pixel_values"].shape)
    taken = (1, *fields.pixel_shape(model.config))
    if images != [1] or pixels != taken:
        raise ValueError(
            f"{folder}: the processor prepares {images} images of shape {pixels} for a model that takes {taken}"
        )


def _optional(path: str | Path | None) -> Path | None:
    return Path(path) if path else None
