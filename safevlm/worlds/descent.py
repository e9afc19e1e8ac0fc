"""Gradient steps for small transformers: Muon on the matrices inside the layers, AdamW on all else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) is torch's own, with the update scaled to AdamW's
(Liu et al. 2025, https://arxiv.org/abs/2502.16982), or one in float32: torch's multiplies in bfloat16, which a CPU
without instructions for it does fifty times slower.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from safevlm.worlds.muon import Float32Muon

WARM_UP = 40
FALL = 0.6
"""Share of the steps over which the rate falls to LAST, linearly."""
LAST = 0.02
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
"""Of AdamW."""
MOST = 5.0
"""Norm beyond which a gradient is cut."""

RECENT = 20
"""Losses that are told as one."""

MatrixSteps = Literal["muon", "muon_float32", "adamw"]


class Descent:
    """Both optimizers and their common schedule."""

    def __init__(
        self, trained: nn.Module, steps: int, matrix_lr: float, lr: float, matrix_steps: MatrixSteps = "muon"
    ) -> None:
        every = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
        matrices = [weight for name, weight in every.items() if weight.ndim == 2 and ".layers." in f".{name}"]
        inside = set(map(id, matrices))
        rest = [weight for weight in every.values() if id(weight) not in inside]
        self.weights = list(every.values())
        self.steps = steps
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.optimizers: list[Optimizer] = []
        if rest:
            self.optimizers.append(_adamw(rest, lr))
        if matrices:
            self.optimizers.append(MATRIX_OPTIMIZERS[matrix_steps](matrices, matrix_lr))
        self.schedules = [LambdaLR(one, self._share) for one in self.optimizers]

    def step(self, loss: Tensor) -> None:
        """One update. FloatingPointError: the loss is no number."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}; lower the learning rate")
        self.losses.append(loss.item())
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, MOST)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()

    @property
    def last(self) -> float:
        """The last loss; not a number before there is one."""
        return self.losses[-1] if self.losses else float("nan")

    @property
    def recent(self) -> float:
        """The mean of the last `RECENT` losses; 0 before there is one."""
        return sum(self.losses) / max(1, len(self.losses))

    def state(self) -> dict[str, Any]:
        """What has to be kept to go on."""
        return {"optimizers": [one.state_dict() for one in self._kept()]}

    def go_on(self, state: dict[str, Any]) -> None:
        """As if there had been no stop."""
        for one, kept in zip(self._kept(), state["optimizers"], strict=True):
            one.load_state_dict(kept)

    def _kept(self) -> list[Any]:
        return [*self.optimizers, *self.schedules]

    def _share(self, step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * max(LAST, min(1.0, (self.steps - step) / (self.steps * FALL)))


def _adamw(weights: Sequence[Tensor], lr: float) -> Optimizer:
    return AdamW(weights, lr=lr, weight_decay=WEIGHT_DECAY, betas=BETAS)


def _muon(matrices: Sequence[Tensor], lr: float) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"the base is trained with torch.optim.Muon, which torch {torch.__version__} lacks: 2.9")
    muon: Any = torch.optim.Muon
    made: Optimizer = muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return made


def _muon_float32(matrices: Sequence[Tensor], lr: float) -> Optimizer:
    return Float32Muon(matrices, lr, WEIGHT_DECAY)


MATRIX_OPTIMIZERS: dict[MatrixSteps, Callable[[Sequence[Tensor], float], Optimizer]] = {
    "muon": _muon,
    "muon_float32": _muon_float32,
    "adamw": _adamw,
}
"""Of the matrices inside the layers."""
