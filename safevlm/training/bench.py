"""How fast training is and how much memory it takes: LLaVA-v1.5's shapes with random weights, one mode after another.

`scripts/bench_gpu.sh` runs it. Weights are made on the device, layer by layer, so that neither a checkpoint nor the
un-quantised LLM has to fit anywhere. Loss, freezing, LoRA and packing are those of a real run; only the data are made
up, all rows equally long. The trap: peak memory never goes down, so every mode gets a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_patch import fields, fresh
from llava_patch.fresh import CLIP_336
from safevlm.config import (
    DataConfig,
    LoraSettings,
    LossWeights,
    ModelConfig,
    Quantization,
    Recipe,
    RunConfig,
    SafetyConfig,
)
from safevlm.data.collate import IGNORED
from safevlm.intervals import bootstrap_median
from safevlm.model import loading, losses, quantization
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig, is_safety_name
from safevlm.training.prepare import prepare, trainable
from safevlm.training.stages import stage_of
from safevlm.versions import installed

WARM_UP = 3
"""Steps that are not counted: the first ones allocate, and choose kernels."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class BenchShape:
    """Sizes of a LLaVA, and of what it is fed."""

    llm: dict[str, int]
    vision: dict[str, int]
    safety: SafetyConfig
    lora: LoraSettings
    batch: int
    """Records per step: the published recipe's, per GPU."""
    words: int
    """Of each prompt and its answer, image slots not counted."""


def _llm(width: int, layers: int, heads: int, intermediate: int, vocabulary: int = 32064) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
    }


SHAPES = {
    "7b": BenchShape(_llm(4096, 32, 32, 11008), CLIP_336, SafetyConfig(), LoraSettings(), batch=2, words=128),
    "13b": BenchShape(_llm(5120, 40, 40, 13824), CLIP_336, SafetyConfig(), LoraSettings(), batch=2, words=128),
    "tiny": BenchShape(
        _llm(128, 2, 4, 256, vocabulary=512),
        {
            **CLIP_336,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
        },
        SafetyConfig(projector_width=32, projector_depth=1, projector_tokens=16, lm_tokens=4, head_tokens=4),
        LoraSettings(r=8),
        batch=2,
        words=32,
    ),
}


@dataclass(frozen=True)
class Mode:
    """A way to train."""

    stage: str
    loss: LossWeights = LossWeights()
    quantize: Quantization = "none"
    checkpointing: bool = False


MODES = {
    "stage1": Mode("stage1"),
    "stage1-head-only": Mode("stage1", LossWeights(lm=0.0)),
    "stage2-lora": Mode("stage2"),
    "stage2-lora-checkpointing": Mode("stage2", checkpointing=True),
    "stage2-qlora-nf4": Mode("stage2", quantize="nf4", checkpointing=True),
    "stage2-qlora-int8": Mode("stage2", quantize="int8", checkpointing=True),
}
LABELS = {"labels": "lm", "safe_level": "level", "safe_type": "category"}
"""Which loss term reads which labels of a batch."""


def build(shape: BenchShape, mode: Mode, device: torch.device) -> Any:
    """A model of this shape with random weights, ready to train as the mode says."""
    dtype = loading.default_dtype(device)
    without_lm = {**shape.llm, "num_hidden_layers": 0}
    stock = fresh.config_of(without_lm, shape.vision, image_token_id=shape.llm["vocab_size"] - 1)
    config = SafeLlavaConfig.from_llava(stock, shape.safety)
    standard = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = SafeLlava(config)
            if mode.loss.lm:  # else the LLM is not even loaded
                _add_layers(model, shape.llm["num_hidden_layers"], mode.quantize, dtype)
    finally:
        torch.set_default_dtype(standard)
    for name, weight in model.named_parameters():
        if is_safety_name(name):
            weight.data = weight.data.float()
    recipe = Recipe(mode.stage, ModelConfig(""), DataConfig([]), RunConfig(""), mode.loss, shape.lora)
    prepared = prepare(model, stage_of(recipe), recipe)
    if mode.checkpointing:
        prepared.gradient_checkpointing_enable({"use_reentrant": False})
    return prepared.train()


def _add_layers(model: SafeLlava, layers: int, quantize: Quantization, dtype: torch.dtype) -> None:
    packed = functools.partial(_pack_all, kind=quantize, dtype=dtype) if quantize != "none" else None
    fresh.add_lm_layers(model, layers, packed)
    if quantize != "none":
        quantization.check(model, quantize)
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = quantize == "nf4", quantize == "int8"  # PEFT asks


def _pack_all(layer: nn.Module, kind: Quantization, dtype: torch.dtype) -> None:
    for name, linear in [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]:
        parent, _, own = name.rpartition(".")
        setattr(layer.get_submodule(parent), own, _packed(linear, kind, dtype))


def _packed(linear: nn.Linear, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    """bitsandbytes packs while a weight moves from the CPU to the device, be it the CPU again."""
    from bitsandbytes import nn as packed

    sizes, device = (linear.in_features, linear.out_features), linear.weight.device
    values = linear.weight.data.cpu()
    with torch.device("meta"):
        if kind == "nf4":
            layer = packed.Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4")
        else:
            layer = packed.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0)
    if kind == "nf4":
        layer.weight = packed.Params4bit(values, requires_grad=False, quant_type="nf4", module=layer).to(device)
    else:
        layer.weight = packed.Int8Params(values, requires_grad=False).to(device)
    return layer


def batch(shape: BenchShape, model: Any, size: int, device: torch.device) -> dict[str, Tensor]:
    """One image and as many words per row; the last half of the words is the answer."""
    taxonomy, image, noise = (
        model.config.taxonomy,
        fields.image_token_id(model.config),
        torch.Generator().manual_seed(0),
    )
    slots = model.get_base_model().slots if hasattr(model, "peft_config") else model.slots
    words = torch.randint(5, image, (size, shape.words), generator=noise)
    images = torch.full((size, slots), image)
    ids = torch.cat([words[:, :1], images, words[:, 1:]], dim=1)
    answers = torch.zeros_like(ids, dtype=torch.bool)
    answers[:, -(shape.words // 2) :] = True
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(size, *fields.pixel_shape(model.config), generator=noise),
        "safety_word_mask": ~answers & (ids != image),
        "labels": ids.masked_fill(~answers, IGNORED),
        "safe_level": torch.randint(0, len(taxonomy.levels), (size,), generator=noise),
        "safe_type": torch.randint(0, len(taxonomy.categories), (size,), generator=noise),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def loss_of(model: Any, inputs: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The trainer's loss of one micro-batch."""
    labels = {name: inputs[key] for key, name in LABELS.items()}
    fed = {name: tensor for name, tensor in inputs.items() if name not in LABELS}
    outputs = model(**fed, skip_lm=not weights.lm)
    terms = {}
    if outputs.logits is not None:
        terms["lm"] = losses.language_modeling(outputs.logits, labels["lm"])
    terms["level"] = losses.classification(outputs.level_logits, labels["level"])
    terms["category"] = losses.classification(outputs.category_logits, labels["category"])
    return sum(getattr(weights, name) * term.total / term.count for name, term in terms.items())


def measure(shape: BenchShape, mode: Mode, steps: int, size: int, device: torch.device) -> dict[str, Any]:
    """Trains for some steps; seconds, memory and sizes as JSON-ready values."""
    torch.manual_seed(0)
    model = build(shape, mode, device)
    inputs = batch(shape, model, size, device)
    trains = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=1e-5, fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [_step(model, inputs, mode, trains, optimizer, device) for _ in range(WARM_UP + steps)][WARM_UP:]
    median, (low, high) = statistics.median(seconds), bootstrap_median(seconds, seed=0)
    return {
        "mode": asdict(mode),
        "batch": size,
        "tokens": inputs["input_ids"].shape[1],
        "frozen_dtype": str(loading.default_dtype(device)).removeprefix("torch."),
        "trained_parameters": sum(trainable(model).values()),
        "steps": steps,
        "seconds_per_step": {"median": median, "low": low, "high": high},
        "samples_per_second": size / median,
        "peak_memory_bytes": _peak(device),
    }


def _step(
    model: Any,
    inputs: dict[str, Tensor],
    mode: Mode,
    trains: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> float:
    _wait(device)
    started = time.perf_counter()
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # as run.bf16 does
        loss = loss_of(model, inputs, mode.loss)
    loss.backward()
    nn.utils.clip_grad_norm_([weight for weight in trains if weight.grad is not None], 1.0)
    optimizer.step()
    _wait(device)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; what was measured is no training step")
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """A GPU is only told what to do; its clock is read when it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    """Of the GPU: what torch had allocated at once; of the CPU: what the process held, libraries included (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would start from what the parent held when it made this process
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _in_own_process(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one mode in a new process; what goes wrong there, out of memory above all, is its result."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "safevlm.training.bench",
            "--shape",
            options.shape,
            "--steps",
            str(options.steps),
            "--batch",
            str(options.batch),
            "--device",
            options.device,
            "--alone",
            mode,
            "--out",
            str(out),
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if out.is_file():
            return json.loads(out.read_text(encoding="utf-8"))
        said = done.stderr.strip().splitlines()
        return {"mode": asdict(MODES[mode]), "error": said[-1] if said else f"ended with code {done.returncode}"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results for a person."""
    lines = [f"{'mode':28}{'batch':>6}{'tokens':>8}{'s/step, median [95 %]':>28}{'samples/s':>11}{'peak GB':>9}"]
    for name, row in results.items():
        if "error" in row:
            lines.append(f"{name:28}{row['error'][:80]}")
            continue
        spent = row["seconds_per_step"]
        told = f"{spent['median']:.3f} [{spent['low']:.3f}, {spent['high']:.3f}]"
        sizes = f"{row['batch']:>6}{row['tokens']:>8}{told:>28}"
        lines.append(f"{name:28}{sizes}{row['samples_per_second']:>11.2f}{row['peak_memory_bytes'] / 1e9:>9.2f}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7b", choices=SHAPES, help="sizes of the model")
    parser.add_argument("--steps", type=int, default=20, help=f"steps to measure, after {WARM_UP} that are not")
    parser.add_argument("--batch", type=int, default=0, help="records per step; 0: the published recipe's")
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated; none: all of them")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes")
    parser.add_argument("--alone", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.steps < 1 or options.batch < 0:
        parser.error("--steps must be at least 1, --batch at least 0")
    try:
        device = loading.default_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shape = SHAPES[options.shape]
    if options.alone:
        result = measure(shape, MODES[options.alone], options.steps, options.batch or shape.batch, device)
        Path(options.out).write_text(json.dumps(result), encoding="utf-8")
        return 0
    results = {}
    for mode in options.mode or MODES:
        print(f"{options.shape} {mode} …", file=sys.stderr)
        results[mode] = _in_own_process(mode, options)
    report = {
        "schema": 1,
        "command": ["scripts/bench_gpu.sh", *(sys.argv[1:] if words is None else words)],
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "shape": options.shape,
        "device": _name_of(device),
        "versions": {package: installed(package) for package in PACKAGES},
        "warm_up_steps": WARM_UP,
        "modes": results,
    }
    print(table(results))
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if any("error" in row for row in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
