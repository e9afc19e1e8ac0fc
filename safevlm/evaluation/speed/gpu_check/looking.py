"""Looking without the LLM: the head by type of number, and the audit beside the bare tower."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from safevlm.analysis.audit import bench as audit_bench
from safevlm.analysis.audit.plan import make_plan
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.sources import Folder
from safevlm.evaluation.speed.gpu_check import flops, models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.model.precision import Precision, precise
from safevlm.model.safe_llava import SafeLlava

IMAGES = {True: 64, False: 8}
"""Images in a batch, on a GPU and elsewhere."""
AUDITED = {True: 256, False: 16}
ROUNDS = 8
MOST_THREADS = 16
"""Threads that read images; more than cores are of no use."""


def head(session: Session) -> dict[str, Any]:
    """Seconds per image of tower and of safety projector and head, by type; and how many verdicts are those of float32.

    A random head would say one thing of all images. Its read-outs are centred and scaled first, so that every label is
    somebody's and a verdict hangs on small differences.
    """
    model = session.once("looking", lambda: models.looking(session))
    count = IMAGES[session.on_gpu]
    images = models.pixels(session, [models.photo(seed) for seed in range(count)])
    with torch.inference_mode():
        patches = model.encode_images(images).patches
        with precise("float32"):
            _spread(model, patches)
            truth = _judge(model, patches)
        tower = _per_image(lambda: model.encode_images(images).last_cls, session, count)
        found: dict[str, Any] = {}
        kinds: dict[str, Precision] = {"float32": "float32", "tf32": "tf32", "bf16": "float32"}
        for kind, products in kinds.items():
            with precise(products), _typed(model, torch.bfloat16 if kind == "bf16" else torch.float32):
                found[kind] = _compared(_judge(model, patches), truth)
                found[kind]["seconds_per_image"] = _per_image(lambda: _judge(model, patches), session, count)
                one = patches[:1]
                found[kind]["seconds_of_one"] = _per_image(lambda: _judge(model, one), session, 1)  # noqa: B023
    for row in found.values():
        row["tower_share"] = tower / (tower + row["seconds_per_image"])
    return {
        "images": count,
        "tower_seconds_per_image": tower,
        "tower_gflop_per_image": flops.vision(model, 1) / 1e9,
        "head_gflop_per_image": flops.looking(model, 1) / 1e9,
        "types": found,
    }


def audit(session: Session) -> dict[str, Any]:
    """`safevlm audit --bench` on drawn photographs in files: images a second beside the bare tower."""
    model = session.once("looking", lambda: models.looking(session))
    workers = min(MOST_THREADS, os.cpu_count() or 1)
    processor = models.image_side(session)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(AUDITED[session.on_gpu]):
            models.photo(seed).save(Path(folder) / f"{seed:04}.jpg", quality=90)
        classifier = RiskClassifier(model, processor, session.device, Path(folder))
        plan = make_plan([Folder(Path(folder))], size=AUDITED[session.on_gpu])
        timed = audit_bench.bench(plan, classifier, batch_size=IMAGES[session.on_gpu], workers=workers)
    return {**timed, "judge_type": "tf32"}


def _judge(model: SafeLlava, patches: Tensor) -> list[Tensor]:
    """Logits of level and category."""
    logits = model.judge(patches, [1] * len(patches))
    return [logits.level.float(), logits.category.float()]


def _spread(model: SafeLlava, patches: Tensor) -> None:
    """Centres and scales the read-outs over these images."""
    head = model.safety_head
    assert head is not None
    for read_out, logits in zip((head.level, head.category), _judge(model, patches), strict=True):
        scale = logits.std(0).clamp(min=1e-12)
        read_out.weight.div_(scale.unsqueeze(1))
        read_out.bias.copy_((read_out.bias - logits.mean(0)) / scale)


def _compared(logits: Sequence[Tensor], truth: Sequence[Tensor]) -> dict[str, Any]:
    same = torch.stack([(one.argmax(1) == other.argmax(1)) for one, other in zip(logits, truth, strict=True)]).all(0)
    errors = [((one - other).norm() / other.norm()).item() for one, other in zip(logits, truth, strict=True)]
    return {"same_verdicts": same.float().mean().item(), "relative_error": max(errors)}


@contextlib.contextmanager
def _typed(model: SafeLlava, dtype: torch.dtype) -> Iterator[None]:
    """Projector and head in another type, and in float32 again."""
    parts = [part for part in (model.safety_projector, model.safety_head) if isinstance(part, nn.Module)]
    kept = [{name: weight.data for name, weight in part.named_parameters()} for part in parts]
    for part in parts:
        part.to(dtype)
    try:
        yield
    finally:
        for part, weights in zip(parts, kept, strict=True):
            for name, weight in part.named_parameters():
                weight.data = weights[name]


def _per_image(work: timing.Work, session: Session, count: int) -> float:
    return median(timing.repeated(work, session.device, ROUNDS)) / count
