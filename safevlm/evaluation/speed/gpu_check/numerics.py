"""Whether the device computes what the CPU computes: the shipped miniature on both, before any number of speed counts.

The reference is float32 on the CPU. An error is ||out - reference|| / ||reference||. The trap: a comparison that passes
on not-a-number; here every bound is one that a comparison must reach.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_patch import fields
from safevlm import defenses
from safevlm.config import LoraSettings, SafetyConfig
from safevlm.data import chat
from safevlm.defenses.policy import Policy
from safevlm.engine import Engine, setting_of
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.miniature import drawing, words
from safevlm.miniature.dataset import GROUPS, MiniatureDataConfig
from safevlm.miniature.world import sample_scene
from safevlm.model import loading
from safevlm.model.precision import precise
from safevlm.training.lora import with_lora
from safevlm.types import Generation, Request

MINIATURE = Path("checkpoints/miniature")
"""Below the repository's root, where the check is started."""
SAFETY = SafetyConfig(projector_width=32, projector_depth=1, projector_tokens=16, lm_tokens=4, head_tokens=4)
BOUNDS = {"float32": 1e-4, "bf16": 5e-2}
"""Largest relative error of logits that still counts as agreement."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SCENES = 8
"""Of each group of the evaluation."""
ANSWERED = 10
LENGTH = Generation(max_new_tokens=40)
LORA_STD = 0.02


def logits(session: Session) -> dict[str, Any]:
    """Errors of the LLM's and of the head's logits on the device, by type. ValueError: over the bound."""
    reference = loading.load(MINIATURE, safety=SAFETY)
    inputs = _inputs(reference, _requests(1))
    truth = _logits(reference.safe_llava, inputs)
    found = {}
    for kind, dtype in DTYPES.items():
        moved = _moved(reference.safe_llava, dtype, session.device)
        with precise("float32"):
            own = _logits(moved, [{name: one.to(session.device) for name, one in row.items()} for row in inputs])
        found[kind] = {name: _error(own[name], truth[name]) for name in truth}
    result = {"requests": len(inputs), "errors": found, "bounds": BOUNDS}
    for kind, errors in found.items():
        if not max(errors.values()) <= BOUNDS[kind]:
            raise ValueError(f"{kind} on {session.device} differs from the CPU: {result}")
    return result


def verdicts(session: Session) -> dict[str, Any]:
    """SafeCLIP's verdicts on held-out scenes and the greedy answers to them, on the device and on the CPU."""
    requests = _requests(SCENES)
    truth = _engine(torch.device("cpu"), torch.float32)
    seen = [truth.look(request) for request in requests]
    said = [reply.text for reply in truth.reply_all(requests[:ANSWERED], LENGTH, batch_size=1)]
    found = {}
    for kind, dtype in DTYPES.items():
        engine = _engine(session.device, dtype)
        with precise("float32"):
            pairs = list(zip(seen, map(engine.look, requests), strict=True))
            replies = engine.reply_all(requests[:ANSWERED], LENGTH, batch_size=1)
        found[kind] = {
            "same_verdicts": sum((a.level, a.category) == (b.level, b.category) for a, b in pairs) / len(pairs),
            "largest_difference": max(
                abs(a.category_probabilities[name] - b.category_probabilities[name])
                for a, b in pairs
                for name in a.category_probabilities
            ),
            "same_answers": sum(text == reply.text for text, reply in zip(said, replies, strict=True)) / len(said),
        }
    return {"scenes": len(requests), "risky": sum(not one.is_clean for one in seen), "answers": len(said), **found}


def merged(session: Session) -> dict[str, Any]:
    """A random LoRA on the device, folded into its weights and not: error of the logits, by type."""
    loaded = loading.load(MINIATURE)
    inputs = _inputs(loaded, _requests(1))
    inputs = [{name: one.to(session.device) for name, one in row.items()} for row in inputs]
    found: dict[str, Any] = {}
    for kind, dtype in DTYPES.items():
        model = _moved(loaded.safe_llava, dtype, session.device)
        wrapped = with_lora(model, LoraSettings(r=8, dropout=0.0)).eval()
        with precise("float32"):
            before = _logits(wrapped, inputs)["llm"]
            noise = torch.Generator().manual_seed(0)
            for name, weight in wrapped.named_parameters():
                if ".lora_B" in name:
                    weight.data = (torch.randn(weight.shape, generator=noise) * LORA_STD).to(weight)
            unmerged = _logits(wrapped, inputs)["llm"]
            folded = _logits(wrapped.merge_and_unload(), inputs)["llm"]
        found[kind] = {"lora_moves": _error(unmerged, before), "error": _error(folded, unmerged)}
        if not found[kind]["error"] <= BOUNDS[kind] or not found[kind]["lora_moves"] > found[kind]["error"]:
            raise ValueError(f"{kind}: merged and unmerged differ on {session.device}: {found}")
    return {"requests": len(inputs), **found, "bounds": BOUNDS}


def _requests(count: int) -> list[Request]:
    """Held-out scenes, so many of each group, with the questions of the evaluation."""
    rng = random.Random(MiniatureDataConfig().eval_seed)
    kinds = [kinds[at % len(kinds)] for kinds in GROUPS.values() for at in range(count)]
    scenes = [sample_scene(rng, kind) for kind in kinds]
    return [Request(rng.choice(words.USE_IMAGE), (drawing.draw(scene),), id=str(at)) for at, scene in enumerate(scenes)]


def _inputs(loaded: loading.Loaded, requests: Sequence[Request]) -> list[dict[str, Tensor]]:
    model, processor = loaded.safe_llava, loaded.processor
    rows = []
    for request in requests:
        ids = torch.tensor([chat.prompt_ids(processor, request, model.slots)])
        pixels = processor.image_processor(list(request.images), return_tensors="pt")["pixel_values"]
        rows.append(
            {"input_ids": ids, "pixel_values": pixels, "safety_word_mask": ids != fields.image_token_id(model.config)}
        )
    return rows


@torch.no_grad()
def _logits(model: Any, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All logits of all requests by name, flat, float32 on the CPU."""
    found: dict[str, list[Tensor]] = {}
    for row in inputs:
        output = model(**row)
        parts = {"llm": output.logits, "level": output.level_logits, "category": output.category_logits}
        for name, part in parts.items():
            if part is not None:
                found.setdefault(name, []).append(part.float().cpu().flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _moved(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    return copy.deepcopy(model).to(device=device, dtype=dtype).eval()


def _error(out: Tensor, truth: Tensor) -> float:
    return ((out - truth).norm() / truth.norm()).item()


def _engine(device: torch.device, dtype: torch.dtype) -> Engine:
    # not `Engine.load`, which on a GPU rounds the weights to bfloat16 before anybody could ask for float32
    loaded = loading.load(MINIATURE)
    loaded.model.to(device=device, dtype=dtype)
    setting = setting_of(loaded, Policy(loaded.safe_llava.config.taxonomy), {}, device)
    return Engine(loaded, defenses.build("safe-clip", setting), device)
