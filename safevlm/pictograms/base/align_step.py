"""Step two: the LLM is made safe in words alone, as aligned LLMs were before anybody gave them eyes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from safevlm.pictograms.base import llm, speech, talk
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import answer_loss

LR = 4e-4


def train(
    out: Path, source: Path, tokenizer: PreTrainedTokenizerFast, config: PictogramBaseConfig, device: torch.device,
    start: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the aligned LLM, its LoRA merged, and its tokenizer to `out`; the LoRA alone to `out`/adapter.

    `start`: what this wrote before, of the same LLM, whose LoRA learns on, at the same rate, from other conversations.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed + (7 if start else 3))
    model = llm.load_llm(source, tokenizer).to(device).train()
    tuned = talk.with_learned_lora(model, start / talk.ADAPTER) if start else talk.with_lora(model)

    def loss(batch: talk.Batch) -> Tensor:
        inputs, labels = talk.padded(batch, device)
        return answer_loss(model.lm_head, model.model(**inputs).last_hidden_state, labels)

    measured = talk.learn(
        "in words", config.align_steps, config.align_batch, llm.processor_of(model.config, tokenizer),
        lambda: (None, speech.in_words(rng)), loss, Descent(tuned, config.align_steps, LR, LR, "adamw"),
    )  # fmt: skip
    talk.merged(tuned, out / talk.ADAPTER).eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"loss": measured}
