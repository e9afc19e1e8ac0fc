"""Gradient steps on conversations: batches of about one length, and the loss of what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from safevlm.data.collate import IGNORED
from safevlm.pictograms.base.config import LORA, LORA_LAYERS, PLACEHOLDER
from safevlm.pictograms.base.speech import Dialogue
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import Tokens, pad, tokenize

Talk = tuple[int | None, Dialogue]
"""The row of its image, if it has one, and what is said."""
Batch = Sequence[tuple[int | None, Tokens]]
SORTED = 8
"""Batches that are sorted by length before they are cut, so that little is padding."""


def with_lora(model: Any, within: str = "") -> Any:
    """Puts a LoRA on the linear layers of an LLM, in place; `within`: where the LLM is. ImportError: no peft."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("the base is tuned with peft: pip install -e '.[train]'") from error
    layers = rf".*{within}.*\.(?:{'|'.join(LORA_LAYERS)})"
    return get_peft_model(model, LoraConfig(target_modules=layers, **LORA))


def learn(
    label: str, steps: int, size: int, processor: Any, talk: Callable[[], Talk], loss: Callable[[Batch], Tensor],
    descent: Descent,
) -> list[float]:  # fmt: skip
    """Steps of one batch each; the losses."""
    losses = []
    batches = _batches(processor, talk, size)
    with tqdm(range(steps), label, mininterval=10) as bar:
        for _ in bar:
            descent.step(loss(next(batches)))
            losses.append(descent.last)
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
    return losses


def answer_loss(head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """(b, t, d) states and (b, t) labels → the loss; words are guessed only where one is taught."""
    told = labels[:, 1:] != IGNORED
    return F.cross_entropy(head(states[:, :-1][told]), labels[:, 1:][told])


def padded(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of the LLM, and the labels."""
    inputs = pad([tokens for _, tokens in batch])
    return inputs, inputs.pop("labels")


def _batches(processor: Any, talk: Callable[[], Talk], size: int) -> Iterator[Batch]:
    while True:
        made = [talk() for _ in range(SORTED * size)]
        tokens = tokenize(processor, [dialogue for _, dialogue in made], PLACEHOLDER)
        pairs = sorted(zip([row for row, _ in made], tokens, strict=True), key=lambda pair: len(pair[1][0]))
        cut = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        yield from cut[::2] + cut[1::2]
