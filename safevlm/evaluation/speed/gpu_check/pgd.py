"""Seconds per step of projected gradient descent on the pixels (Madry et al., arXiv 1706.06083).

A step is a forward, the gradient of a loss with respect to the pixels, its sign, and the projection onto the ball and
onto what an image can be. Through the head only, or through the whole model to an answer of one's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from safevlm.evaluation.speed.gpu_check import models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.model import losses
from safevlm.training import bench

EPSILON, STEP = 8 / 255, 2 / 255
"""Largest change of a pixel, and of a step, on a scale of 0 to 1."""
ROUNDS = 8
BATCH = {True: (1, 16), False: (1, 2)}
"""Images at once, on a GPU and elsewhere."""


def on_head(session: Session) -> dict[str, Any]:
    """Raises the probability of the head's first level, `safe`."""
    model = session.once("looking", lambda: models.looking(session))
    model.requires_grad_(False)

    def loss(pixels: Tensor) -> Tensor:
        logits = model.judge(model.encode_images(pixels).patches, [1] * len(pixels))
        return F.cross_entropy(logits.level.float(), torch.zeros(len(pixels), dtype=torch.long, device=pixels.device))

    return {f"batch {count}": _measured(session, loss, count) for count in BATCH[session.on_gpu]}


def on_answer(session: Session) -> dict[str, Any]:
    """Raises the probability of an answer, through the whole model; one image."""
    model = session.once("answering", lambda: models.answering(session)).safe_llava
    model.requires_grad_(False)
    inputs = bench.batch(session.shape, model, 1, session.device)
    labels = inputs["labels"]
    fed = {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def loss(pixels: Tensor) -> Tensor:
        term = losses.language_modeling(model(**fed, pixel_values=pixels).logits, labels)
        return term.total / term.count

    return {"batch 1": _measured(session, loss, 1)} | {"memory": session.memory()}


def _measured(session: Session, loss: Callable[[Tensor], Tensor], count: int) -> dict[str, Any]:
    start = models.pixels(session, [models.photo(seed) for seed in range(count)])
    std = torch.tensor(models.image_side(session).image_processor.image_std, device=session.device).view(3, 1, 1)
    low, high = start.amin(), start.amax()
    state = {"pixels": start}

    def step() -> None:
        pixels = state["pixels"].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(pixels), pixels)
        moved = pixels.detach() - STEP / std * gradient.sign()
        state["pixels"] = torch.clamp(start + (moved - start).clamp(-EPSILON / std, EPSILON / std), low, high)

    before = loss(start).item()
    seconds = timing.repeated(step, session.device, ROUNDS)
    return {"seconds_per_step": median(seconds), "loss_before": before, "loss_after": loss(state["pixels"]).item()}
