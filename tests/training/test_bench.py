"""What is timed is a training step: the stage's own weights, the trainer's own loss."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from safevlm.config import LossWeights
from safevlm.model.quantization import PACKED
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import bench
from safevlm.training.prepare import trainable
from safevlm.training.trainer import SafeTrainer

CPU = torch.device("cpu")
TINY = bench.SHAPES["tiny"]
LORA_OF_7B = 639_631_360
"""256 · (in + out) of seven projections in 32 layers."""
modes = pytest.mark.parametrize("name", bench.MODES)


def _skip_without_bitsandbytes(mode: bench.Mode) -> None:
    if mode.quantize != "none" and not importlib.util.find_spec("bitsandbytes"):
        pytest.skip("needs the extra `quant`")


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are traced as always; making kernels for a CPU takes a minute, and a compiler that may not be there."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))


@modes
def test_every_mode_trains_what_its_stage_trains(name: str) -> None:
    mode = bench.MODES[name]
    _skip_without_bitsandbytes(mode)
    model = bench.build(TINY, mode, CPU)
    names = set(trainable(model))
    assert names and all(is_safety_name(n) if mode.stage == "stage1" else ".lora_" in n for n in names)
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = TINY.llm["num_hidden_layers"] if mode.loss.lm else 0
    assert len(inner.model.language_model.layers) == layers
    packed = [module for module in inner.modules() if type(module).__module__.startswith("bitsandbytes.nn")]
    assert len(packed) == (7 * layers if mode.quantize != "none" else 0)
    assert {type(module).__name__ for module in packed} <= {PACKED.get(mode.quantize)}
    bench.loss_of(model, bench.batch(TINY, model, 2, CPU), mode.loss).backward()
    assert not {n for n, w in model.named_parameters() if w.requires_grad and w.grad is None}


@modes
def test_timed_steps_train_what_the_mode_trains_and_nothing_else(name: str) -> None:
    mode = bench.MODES[name]
    _skip_without_bitsandbytes(mode)
    model = bench.build(TINY, mode, CPU)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    seconds = bench.timed_steps(model, bench.batch(TINY, model, 2, CPU), mode, steps=2)
    assert len(seconds) == 2 and min(seconds) > 0
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(trainable(model))
    assert all(weight.grad is None for weight in model.parameters()), "gradients would count as the next one's memory"


def test_checkpointing_is_turned_on_and_off_on_one_model() -> None:
    """The modes of a stage share a model: one that stayed on would be measured as the other."""
    model = bench.build(TINY, bench.MODES["stage2-lora"], CPU)
    inner = model.get_base_model()
    for on in (True, False, True):
        bench.checkpoint(model, on)
        assert inner.is_gradient_checkpointing is on


@pytest.mark.parametrize("weights", [LossWeights(2.0, 3.0, 5.0), LossWeights(0.0, 10.0, 10.0)])
def test_loss_is_the_trainers(tmp_path: Path, weights: LossWeights) -> None:
    from transformers import TrainingArguments

    model = bench.build(TINY, replace(bench.MODES["stage1"], loss=weights), CPU)
    inputs = bench.batch(TINY, model, 2, CPU)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = SafeTrainer(loaded=None, weights=weights, files={}, model=model, args=arguments)
    truth = trainer.compute_loss(model, {**inputs, "ids": ["0", "1"]})
    assert torch.allclose(bench.loss_of(model, inputs, weights), truth, rtol=1e-5)


@pytest.mark.slow
def test_the_7b_shape_is_llava_7b() -> None:
    model = bench.build(bench.SHAPES["7b"], bench.MODES["stage2-lora"], torch.device("meta"))
    assert sum(trainable(model).values()) == LORA_OF_7B
    assert model.get_base_model().slots == 576 + 64
    frozen = {weight.dtype for name, weight in model.named_parameters() if name not in trainable(model)}
    assert frozen == {torch.bfloat16, torch.float32}, "the LLM in bf16, safety modules in float32"
