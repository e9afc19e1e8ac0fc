"""Gradient steps on conversations: batches of about one length, and the loss of what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from safevlm.pictograms.base.sizes import LORA, LORA_LAYERS, PLACEHOLDER
from safevlm.pictograms.base.speech import Dialogue
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import Tokens, by_length, pad, tokenize

Talk = tuple[int | None, Dialogue]
"""The row of its image, if it has one, and what is said."""
Batch = Sequence[tuple[int | None, Tokens]]
ADAPTER = "adapter"
"""Folder of a LoRA, in the folder of the step that learned it."""
WEIGHTS = "adapter_model.safetensors"
"""PEFT's own name."""
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


def merged(tuned: Any, adapter: Path) -> Any:
    """The model with its LoRA merged; the LoRA alone, in bfloat16, is written to the folder `adapter`.

    It is merged as it is written, so that whoever merges the folder gets the same weights.
    """
    learned = {name: weight for name, weight in tuned.named_parameters() if "lora_" in name}
    for weight in learned.values():
        weight.data = weight.data.bfloat16().to(weight.dtype)
    tuned.peft_config["default"].base_model_name_or_path = ""  # a place on the machine that trained it
    tuned.save_pretrained(adapter, state_dict={name: weight.data.bfloat16() for name, weight in learned.items()})
    return tuned.merge_and_unload()


def with_learned_lora(model: Any, adapter: Path, within: str = "") -> Any:
    """`with_lora`, with the weights that `merged` wrote; no setting is read from the folder.

    FileNotFoundError: they are missing. ValueError: they are those of another model.
    """
    tuned = with_lora(model, within)
    from peft import set_peft_model_state_dict

    other = f"{adapter / WEIGHTS}: a LoRA of another model; give the LLM that the build was given: --llm"
    try:
        fitted: Any = set_peft_model_state_dict(tuned, load_file(adapter / WEIGHTS))
    except RuntimeError as error:  # of another width
        raise ValueError(other) from error
    if fitted.unexpected_keys or any("lora_" in name for name in fitted.missing_keys):
        raise ValueError(other)
    return tuned


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


def padded(batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of the LLM, and the labels."""
    inputs = {name: rows.to(device) for name, rows in pad([tokens for _, tokens in batch]).items()}
    return inputs, inputs.pop("labels")


def _batches(processor: Any, talk: Callable[[], Talk], size: int) -> Iterator[Batch]:
    while True:
        made = [talk() for _ in range(SORTED * size)]
        tokens = tokenize(processor, [dialogue for _, dialogue in made], PLACEHOLDER)
        cut = by_length(list(zip([row for row, _ in made], tokens, strict=True)), size)
        yield from cut[::2] + cut[1::2]
