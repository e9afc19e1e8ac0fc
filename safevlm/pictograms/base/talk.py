"""Gradient steps on conversations: batches of about one length, and the loss of what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from safevlm.pictograms.base.sizes import LORA, LORA_LAYERS, PLACEHOLDER
from safevlm.pictograms.base.speech import Dialogue
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import Tokens, by_length, pad, tokenize

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
) -> float:  # fmt: skip
    """Steps of one batch each; the loss at the end."""
    batches = _batches(processor, talk, size)
    with tqdm(range(steps), label, mininterval=10) as bar:
        for _ in bar:
            descent.step(loss(next(batches)))
            bar.set_postfix(loss=f"{descent.recent:.3f}", refresh=False)
    return round(descent.recent, 4)


def padded(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of the LLM, and the labels."""
    inputs = pad([tokens for _, tokens in batch])
    return inputs, inputs.pop("labels")


def _batches(processor: Any, talk: Callable[[], Talk], size: int) -> Iterator[Batch]:
    while True:
        made = [talk() for _ in range(SORTED * size)]
        tokens = tokenize(processor, [dialogue for _, dialogue in made], PLACEHOLDER)
        cut = by_length(list(zip([row for row, _ in made], tokens, strict=True)), size)
        yield from cut[::2] + cut[1::2]
