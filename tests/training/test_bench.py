"""What is timed is a training step: the stage's own weights, the trainer's own loss."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safevlm.config import LossWeights
from safevlm.model.quantization import PACKED
from safevlm.model.safe_llava import is_safety_name
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
    without = {n for n, w in model.named_parameters() if w.requires_grad and w.grad is None}
    assert without <= ({"safety_lm_tokens.latent"} if not mode.loss.lm else set())


@modes
def test_measured_numbers_are_plausible(name: str) -> None:
    mode = bench.MODES[name]
    _skip_without_bitsandbytes(mode)
    row = bench.measure(TINY, mode, steps=3, size=2, device=CPU)
    spent = row["seconds_per_step"]
    assert 0 < spent["low"] <= spent["median"] <= spent["high"]
    assert row["samples_per_second"] == pytest.approx(2 / spent["median"])
    assert row["peak_memory_bytes"] > 1e8 and row["tokens"] == TINY.words + 16 + TINY.safety.lm_tokens
    json.dumps(row)


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


@pytest.mark.slow
def test_command_writes_numbers_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "numbers.json"
    words = ["--shape", "tiny", "--steps", "1", "--device", "cpu", "--mode", "stage1-head-only", "--out", str(out)]
    assert bench.main(words) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert set(report["modes"]) == {"stage1-head-only"} and report["versions"]["torch"] == torch.__version__
    assert "stage1-head-only" in capsys.readouterr().out
    failed = {"stage1": {"error": "torch.OutOfMemoryError: CUDA out of memory."}}
    assert "out of memory" in bench.table(failed)
