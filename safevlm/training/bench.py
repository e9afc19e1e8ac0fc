"""Training steps to be measured: LLaVA-v1.5's shapes with random weights, made on the device.

Weights are made layer by layer, so that neither a checkpoint nor the un-quantised LLM has to fit anywhere. Loss,
freezing, LoRA and packing are those of a real run; only the data are made up, all rows equally long.
`scripts/gpu_check.sh` measures with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_patch import fields, fresh
from llava_patch.classes import Config
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
from safevlm.data.collate import IGNORED, columns_before_labels
from safevlm.model import loading, losses, quantization
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig
from safevlm.model.safety_modules import is_safety_name
from safevlm.training.compiling import compile_layers
from safevlm.training.prepare import prepare
from safevlm.training.stages import stage_of

WARM_UP = 3
"""Steps that are not counted: the first ones allocate, and choose kernels."""


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
        _llm(128, 2, 4, 256, vocabulary=1024),
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
    compile: bool = False


MODES = {
    "stage1": Mode("stage1"),
    "stage1-head-only": Mode("stage1", LossWeights(lm=0.0)),
    "stage2-lora": Mode("stage2"),
    "stage2-lora-checkpointing": Mode("stage2", checkpointing=True),
    "stage2-lora-compiled": Mode("stage2", compile=True),
    "stage2-qlora-nf4": Mode("stage2", quantize="nf4", checkpointing=True),
    "stage2-qlora-int8": Mode("stage2", quantize="int8", checkpointing=True),
}
LABELS = {"labels": "lm", "safe_level": "level", "safe_type": "category"}
"""Which loss term reads which labels of a batch."""


def stock_config(shape: BenchShape, image_token: int | None = None) -> Config:
    """A stock LLaVA's config. `image_token`: id of `<image>`; none: the vocabulary's last."""
    image_token = shape.llm["vocab_size"] - 1 if image_token is None else image_token
    return fresh.config_of(shape.llm, shape.vision, image_token_id=image_token)


def random_model(
    shape: BenchShape,
    device: torch.device,
    *,
    lm: bool = True,
    quantize: Quantization = "none",
    image_token: int | None = None,
) -> SafeLlava:
    """A model of this shape with random weights, made on the device; bf16 on a GPU, the safety modules float32.

    `lm` False leaves the LLM's layers out, as a head-only run does. `image_token` is as in `stock_config`.
    """
    config = SafeLlavaConfig.from_stock(stock_config(shape, image_token), shape.safety)
    fields.set_lm_layers(config, 0)

    def make() -> SafeLlava:
        model = SafeLlava(config)
        if lm:
            _add_layers(model, shape.llm["num_hidden_layers"], quantize, loading.default_dtype(device))
        return model

    return made_on(device, make)


def made_on(device: torch.device, make: Callable[[], Any]) -> Any:
    """The model that `make` makes, on the device; bf16 on a GPU, the safety modules float32; not in training mode."""
    standard = torch.get_default_dtype()
    torch.set_default_dtype(loading.default_dtype(device))
    try:
        with device:
            model = make()
    finally:
        torch.set_default_dtype(standard)
    for name, weight in model.named_parameters():
        if is_safety_name(name):
            weight.data = weight.data.float()
    return model.eval()


def recipe_of(shape: BenchShape, mode: Mode, *, bf16: bool = False) -> Recipe:
    """What a stage is told; there are no files."""
    run = RunConfig("out", bf16=bf16, compile=mode.compile)
    return Recipe(mode.stage, ModelConfig("base"), DataConfig(["records"]), run, mode.loss, shape.lora)


def build(shape: BenchShape, mode: Mode, device: torch.device) -> Any:
    """A random model of this shape, ready to train as the mode says."""
    model = random_model(shape, device, lm=bool(mode.loss.lm), quantize=mode.quantize)
    return ready(model, shape, mode)


def ready(model: SafeLlava, shape: BenchShape, mode: Mode) -> Any:
    """The model with what the mode's stage puts on it, frozen and unfrozen, in training mode."""
    recipe = recipe_of(shape, mode, bf16=_autocasts(model.device))
    prepared = prepare(model, stage_of(recipe), recipe)
    checkpoint(prepared, mode.checkpointing)
    if recipe.run.compile:
        compile_layers(prepared)
    return prepared.train()


def checkpoint(model: Any, on: bool) -> None:
    """Turns gradient checkpointing on or off, as the trainer does."""
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _add_layers(model: SafeLlava, layers: int, quantize: Quantization, dtype: torch.dtype) -> None:
    packed = functools.partial(_pack_all, kind=quantize, dtype=dtype) if quantize != "none" else None
    fresh.add_lm_layers(model, layers, packed)
    if quantize != "none":
        quantization.check(model, quantize)
        for flag, kind in (("is_loaded_in_4bit", "nf4"), ("is_loaded_in_8bit", "int8")):  # PEFT asks
            setattr(model, flag, quantize == kind)


def _pack_all(layer: nn.Module, kind: Quantization, dtype: torch.dtype) -> None:
    for name, linear in [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]:
        parent, _, own = name.rpartition(".")
        setattr(layer.get_submodule(parent), own, _packed(linear, kind, dtype))


def _packed(linear: nn.Linear, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    """bitsandbytes packs while a weight moves from the CPU to the device, be it the CPU again."""
    from bitsandbytes import nn as packed

    sizes, device = (linear.in_features, linear.out_features), linear.weight.device
    values = linear.weight.data.cpu()
    layer: nn.Module
    weight: Any  # its `to` packs, and is typed by a class that it is not
    if kind == "nf4":
        with torch.device("meta"):
            layer = packed.Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4")
        weight = packed.Params4bit(values, requires_grad=False, quant_type="nf4", module=layer)
    else:
        with torch.device("meta"):
            layer = packed.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0)
        weight = packed.Int8Params(values, requires_grad=False)
    layer.weight = weight.to(device)
    return layer


def batch(shape: BenchShape, model: Any, size: int, device: torch.device) -> dict[str, Tensor]:
    """One image and as many words per row; the last half of the words is the answer."""
    taxonomy, image, noise = (
        model.config.taxonomy,
        fields.image_token_id(model.config),
        torch.Generator().manual_seed(0),
    )
    slots = model.get_base_model().slots if hasattr(model, "peft_config") else model.slots
    words = torch.randint(5, shape.llm["vocab_size"] - 1, (size, shape.words), generator=noise)
    images = torch.full((size, slots), image)
    ids = torch.cat([words[:, :1], images, words[:, 1:]], dim=1)
    answers = torch.zeros_like(ids, dtype=torch.bool)
    answers[:, -(shape.words // 2) :] = True
    labels = ids.masked_fill(~answers, IGNORED)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(size, *fields.pixel_shape(model.config), generator=noise),
        "safety_word_mask": ~answers & (ids != image),
        "labels": labels,
        "logits_to_keep": columns_before_labels(labels),
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
        terms["lm"] = losses.language_modeling(outputs.logits, labels["lm"], inputs["logits_to_keep"])
    terms["level"] = losses.classification(outputs.level_logits, labels["level"])
    terms["category"] = losses.classification(outputs.category_logits, labels["category"])
    return sum(getattr(weights, name) * term.total / term.count for name, term in terms.items())


def timed_steps(model: Any, inputs: dict[str, Tensor], mode: Mode, steps: int) -> list[float]:
    """Seconds of each of `steps` training steps, after `WARM_UP` that are not counted. The model is trained.

    FloatingPointError when the loss is not finite: what was measured would be no training step.
    """
    trains = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=1e-5, fused=True)
    try:
        return [_step(model, inputs, mode, trains, optimizer) for _ in range(WARM_UP + steps)][WARM_UP:]
    finally:
        optimizer.zero_grad()  # gradients would count as memory of whatever is measured next


def _step(
    model: Any, inputs: dict[str, Tensor], mode: Mode, trains: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> float:
    device = inputs["input_ids"].device
    wait(device)
    started = time.perf_counter()
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=_autocasts(device)):  # as run.bf16 does
        loss = loss_of(model, inputs, mode.loss)
    loss.backward()
    nn.utils.clip_grad_norm_([weight for weight in trains if weight.grad is not None], 1.0)
    optimizer.step()
    wait(device)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; what was measured is no training step")
    return time.perf_counter() - started


def _autocasts(device: torch.device) -> bool:
    return device.type == "cuda"


def wait(device: torch.device) -> None:
    """Returns when the device has done what it was told: a GPU's calls return before it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
