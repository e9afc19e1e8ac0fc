"""`safevlm pictograms build`: the base, step after step.

OUT/clip        CLIP of the trained styles, text tower included
OUT/aligned     the LLM, safe in words
OUT/base        a stock LLaVA, bfloat16: what everything else starts from
OUT/measured    what the base does before any guard, on validation (`measure`); OUT/measured_test, when asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llava_patch import vision
from safevlm.data.made_by import Places
from safevlm.files import read_json
from safevlm.pictograms.base import align_step, clip_step, llm, measure, see_step, steps
from safevlm.pictograms.base.assemble import check_there
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.parts import FILE, Parts
from safevlm.pictograms.styles import of_part
from safevlm.worlds.splits import Split

STEPS = ("clip", "aligned", "base")
LEARN_ON = ("clip", "aligned")
CLIP_FIELDS = ("seed", "scenes", "sight_steps", "caption_steps", "clip_batch", "cases")
ALIGN_FIELDS = ("seed", "align_steps", "align_batch")
SEE_FIELDS = ("seed", "pictures", "fit_steps", "projector_steps", "see_steps", "see_batch")


def build(
    out: Path, parts: Parts, source: Path, config: PictogramBaseConfig, device: torch.device, only: str = "",
    start: Path | None = None,
) -> None:  # fmt: skip
    """All steps, or only one; `source` is the pretrained LLM.

    `start`: an earlier build, whose CLIP and LoRA of the alignment learn on in place of new ones. A finished step is
    skipped. ValueError: a step was made otherwise, or cannot learn on. FileNotFoundError: an earlier one is missing.
    """
    begun = _begun(start, [only] if only else STEPS)
    if not vision.TAKES_OUTPUTS:
        raise ValueError("the base is trained through transformers' own LLaVA on features: that needs 5.18")
    _prepare(device)
    makes: Sequence[Callable[[], None]] = (
        lambda: _make_clip(out / "clip", parts, source, of_part("train"), config, device, begun.get("clip")),
        lambda: _make_aligned(out / "aligned", source, config, device, begun.get("aligned")),
        lambda: _make_base(out, parts, config, device),
    )
    for name, make in zip(STEPS, makes, strict=True):
        if only in ("", name):
            make()


def try_styles(
    out: Path, parts: Parts, source: Path, styles: Sequence[str], config: PictogramBaseConfig, device: torch.device
) -> None:
    """Only a CLIP, of these styles: for the rule by which styles are held out."""
    _prepare(device)
    _make_clip(out, parts, source, styles, config, device)


def measured(
    out: Path, parts: Parts, data: Path, split: Split, config: PictogramBaseConfig, device: torch.device
) -> None:
    """What the base does on a split, and how its steps were made: `OUT/measured`, of the test `OUT/measured_test`."""
    name = "measured" if split == "validation" else f"measured_{split}"

    def step(_folder: Path) -> dict[str, Any]:
        made = {name: read_json(out / name / steps.RUN) for name in STEPS}
        told = ("settings", "seconds", "cpus", "threads", "measured")
        table = measure.measure(out / "base", parts, data, split, config, device)
        return {**table, "steps": {name: {key: record[key] for key in told} for name, record in made.items()}}

    _make(out / name, ("seed", "cases"), config, {"base": out / "base", "data": data / "eval.jsonl"}, device, step)


def _prepare(device: torch.device) -> None:
    """On a card, products of float32 in TF32: what is learned here is stored in bfloat16."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def _begun(start: Path | None, wanted: Sequence[str]) -> Mapping[str, Path]:
    """What an earlier build made in these steps. FileNotFoundError: it lacks one. ValueError: none learns on."""
    if start is None:
        return {}
    begun = {name: start / name for name in wanted if name in LEARN_ON}
    if not begun:
        raise ValueError(f"--start: the step {wanted[0]} does not learn on; leave it out with --only {wanted[0]}")
    check_there(start, begun, "--start")
    return begun


def _inputs(start: Path | None, **inputs: Path) -> dict[str, Places]:
    return {**inputs, **({"start": start} if start else {})}


def _make_aligned(
    folder: Path, source: Path, config: PictogramBaseConfig, device: torch.device, start: Path | None
) -> None:
    _make(
        folder, ALIGN_FIELDS, config, _inputs(start, llm=source), device,
        lambda partial: align_step.train(partial, source, llm.load_tokenizer(source), config, device, start),
    )  # fmt: skip


def _make_base(out: Path, parts: Parts, config: PictogramBaseConfig, device: torch.device) -> None:
    inputs = {"parts": parts.folder / FILE, "clip": out / "clip", "aligned": out / "aligned"}
    if missing := [str(place) for place in inputs.values() if not place.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing: make the earlier steps first")
    _make(
        out / "base", SEE_FIELDS, config, inputs, device,
        lambda folder: see_step.train(folder, out / "clip", out / "aligned", parts, config, device),
    )  # fmt: skip


def _make_clip(
    folder: Path, parts: Parts, source: Path, styles: Sequence[str], config: PictogramBaseConfig, device: torch.device,
    start: Path | None = None,
) -> None:  # fmt: skip
    inputs = _inputs(start, parts=parts.folder / FILE, llm=source)
    stopped = folder.with_suffix(".stopped")
    _make(
        folder, CLIP_FIELDS, config, inputs, device,
        lambda partial: clip_step.train(partial, parts, styles, source, config, stopped, device, start),
        {"styles": list(styles)},
    )  # fmt: skip


def _make(
    folder: Path, fields: Sequence[str], config: PictogramBaseConfig, inputs: Mapping[str, Places],
    device: torch.device, step: Any, more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    settings = {name: value for name, value in asdict(config).items() if name in fields} | dict(more or {})
    steps.make(folder, settings, inputs, device, step)
