"""The same training by TRL's SFTTrainer: a LoRA on a plain LLaVA of the same shape, batch and number of tokens.

The plain model has no learned tokens, so its rows have as many more words. Its loss is the answer's alone; ours looks
at the image too. Gradient checkpointing, which TRL turns on by default, is off, as in the step it is compared with.
"""

from __future__ import annotations

import dataclasses
import tempfile
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llava_patch.names import LORA_TARGETS
from safevlm.evaluation.speed.gpu_check import models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.model.safety_section import NO_SAFETY
from safevlm.training import bench

STEPS = 10
KEYS = ("input_ids", "attention_mask", "pixel_values", "labels")


class StepClock(TrainerCallback):
    """Seconds of every training step; the device is waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self._clock = timing.Clock(device)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock = timing.Clock(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(self._clock.seconds())


def train(session: Session, *, batch: int, steps: int = STEPS) -> dict[str, Any]:
    """Measures `steps` steps of the trainer's own loop, after some that are not counted."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    learned = session.shape.safety.lm_tokens
    shape = dataclasses.replace(session.shape, safety=NO_SAFETY, words=session.shape.words + learned)
    loaded = models.answering(session, shape)
    inputs = bench.batch(shape, loaded.safe_llava, batch, torch.device("cpu"))
    fed = {key: inputs[key] for key in KEYS}

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in fed.items()}

    count, lora, clock = bench.WARM_UP + steps, shape.lora, StepClock(session.device)
    rows = InMemoryTable.from_pydict({"row": list(range(count * batch))})
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=count,
            learning_rate=1e-5,
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            bf16=session.on_gpu,
            use_cpu=not session.on_gpu,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=models.plain(loaded, session),
            args=arguments,
            data_collator=collate,
            # a fingerprint of one's own: making one pickles types, and fails with some versions of pyarrow
            train_dataset=Dataset(rows, fingerprint="rows"),
            processing_class=loaded.processor,
            peft_config=LoraConfig(
                r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=LORA_TARGETS
            ),
            callbacks=[clock],
        )
        session.tidy()
        trainer.train()
    seconds = clock.seconds[bench.WARM_UP :]
    middle = median(seconds)
    return {
        "batch": batch,
        "tokens": fed["input_ids"].shape[1],
        "trained_parameters": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "seconds_per_step": timing.told(seconds),
        "samples_per_second": batch / middle,
        "memory": session.memory(),
    }
