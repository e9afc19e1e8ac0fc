"""How much memory one GPU needs: arithmetic on shapes. An estimate, good to tell 30 from 80 GiB, not 78 from 82.

Bytes, for N processes; b is 2 with bf16 and 4 without.

* Frozen weights: b each (nf4: 0.5 + constants of 1/64 + 4/16384 = 0.516; int8: 1). ZeRO-3 leaves 1/N of them, or
  none with offload_param, and two layers that are gathered at a time. ZeRO-2 leaves them whole.
* What trains: an fp32 weight, its gradient and Adam's two moments are 16, and autocast's bf16 copy 2. Under DeepSpeed
  with bf16 it is 2 (weight) + 2 (gradient) + 12 (fp32 master and moments); ZeRO-1 divides the 12 by N, ZeRO-2 the
  gradient too, ZeRO-3 all. offload_optimizer takes the 12 off the GPU. (Rajbhandari et al., arXiv 1910.02054, §3.)
* Activations of the LLM, per token and layer, through frozen linear layers, whose inputs autograd need not keep:
  8 h (two norms, fp32) + 4 b h (query, key, value, output of attention) + 3 b m (gate, activation, up), for hidden
  width h and intermediate width m. A LoRA with dropout keeps each input twice: (b + 1) (6 h + m) more. Eager attention
  keeps its probabilities: (4 + 2 b) heads x tokens. Gradient checkpointing keeps b h per layer, and one layer in full.
  (Compare Korthikanti et al., arXiv 2205.05198: 34 h per token and layer for a trained GPT layer in 16 bits.)
  Nothing is kept where no gradient passes the LLM: head-only training, and stage 1 without LM tokens.
* Logits: 4 b per token and word (logits, a shifted copy, their gradients) and 12 per answer token and word (fp32).
* Vision tower, under no_grad: its hidden states, all layers, and one layer at work.
* Safety projector and head: ten tensors per block and four of the LLM's width per feature, b each.
* 1.5 GiB for CUDA's context, kernels' workspace and NCCL; 10 % of what moves for fragmentation.

The batch is taken to be the longest of the sampled records, times the batch size: what runs out is the worst step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from safevlm.config import Quantization

GIB = 2**30
CONTEXT = int(1.5 * GIB)
FRAGMENTATION = 0.1
PACKED = {"nf4": 0.5 + 1 / 64 + 4 / 16384, "int8": 1.0}
"""Bytes of a packed weight: 4 bits and, per block of 64, an 8-bit constant that has fp32 ones in blocks of 256."""
LIVE_LAYERS = 2
"""Under ZeRO-3: one layer computes while the next is fetched."""
ADAM = 12
"""DeepSpeed's fp32 master weight and two moments."""
FP32 = 4
FP32_ADAM = 16
"""Without DeepSpeed: fp32 weight, gradient and two moments."""


@dataclass(frozen=True)
class ModelShape:
    """The model and what of it trains; sizes in weights, widths and tokens."""

    llm: int
    """Frozen weights in the LLM's layers, the ones that can be packed."""
    other: int
    """All other frozen weights."""
    trained: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    tower_layers: int
    tower_width: int
    tower_intermediate: int
    patches: int
    projector_width: int = 0
    projector_blocks: int = 0
    features: int = 0
    """Safety features and head tokens per image; 0: no head."""
    lora: bool = False
    learns_through_llm: bool = True
    """Whether gradients pass the LLM: to LM tokens or to a LoRA."""
    runs_llm: bool = True
    """False: head-only training."""


@dataclass(frozen=True)
class Load:
    """The records of one step, and how they are trained on."""

    tokens: int
    answer_tokens: int
    images: int
    """Per record, like the tokens."""
    batch: int = 1
    stage: int = 0
    """Of ZeRO; 0: none."""
    processes: int = 1
    bytes: int = 2
    """Of a frozen weight and of an activation: 2 in bf16, 4 in float32."""
    checkpointing: bool = False
    quantize: Quantization = "none"
    attention: str = "sdpa"
    offloads_optimizer: bool = False
    offloads_weights: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU."""

    frozen: int
    trained: int
    """Weights, gradients and optimiser of what trains."""
    activations: int
    logits: int
    vision: int
    """Tower, safety projector and head at work."""
    reserve: int
    """Context and fragmentation."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def estimate(shape: ModelShape, load: Load) -> MemoryEstimate:
    """What one GPU must hold at the worst step."""
    moving = (_activations(shape, load), _logits(shape, load), _vision(shape, load))
    reserve = CONTEXT + int(FRAGMENTATION * sum(moving))
    return MemoryEstimate(_frozen(shape, load), _trained(shape, load), *moving, reserve)


def host(shape: ModelShape, load: Load) -> int:
    """What is offloaded, in bytes over all nodes: Adam's 12, and with offload_param the weights too."""
    weights = (shape.llm + shape.other + shape.trained) * load.bytes if load.offloads_weights else 0
    return weights + (ADAM * shape.trained if load.offloads_optimizer else 0)


def table(shape: ModelShape, load: Load, gpu: float, batches: tuple[int, ...] = (1, 2, 4, 8, 16)) -> list[str]:
    """GiB per GPU by ZeRO stage and batch size; `*` marks the recipe's, `!` what is over `gpu` GiB."""
    sizes = sorted({*batches, load.batch})
    lines = ["GiB per GPU        " + "".join(f"{f'batch {size}':>11}" for size in sizes)]
    for stage in _stages(load):
        cells = [_cell(shape, dataclasses.replace(load, stage=stage, batch=size), load, gpu) for size in sizes]
        lines.append(f"{'no ZeRO' if not stage else f'ZeRO-{stage}':<19}" + "".join(f"{cell:>11}" for cell in cells))
    return lines


def _stages(load: Load) -> tuple[int, ...]:
    return (0, 2) if load.quantize != "none" else (0, 2, 3)  # ZeRO-3 cannot cut packed weights


def _cell(shape: ModelShape, tried: Load, own: Load, gpu: float) -> str:
    size = estimate(shape, tried).total / GIB
    marks = ("!" if size > gpu else "") + ("*" if tried == own else "")
    return f"{size:.1f}{marks:<2}"


def _frozen(shape: ModelShape, load: Load) -> int:
    llm = int(shape.llm * PACKED.get(load.quantize, load.bytes))
    whole = llm + shape.other * load.bytes
    if load.stage < 3:
        return whole
    kept = 0 if load.offloads_weights else whole // load.processes
    gathered = LIVE_LAYERS * llm // max(1, shape.layers)
    return min(whole, kept + gathered)


def _trained(shape: ModelShape, load: Load) -> int:
    """Weight and gradient in the working type and Adam's 12, each cut where the stage cuts it."""
    if not load.stage:
        return shape.trained * (FP32_ADAM + (load.bytes if load.bytes < FP32 else 0))
    cut = load.processes
    weight = load.bytes / (cut if load.stage >= 3 else 1)
    gradient = load.bytes / (cut if load.stage >= 2 else 1)
    optimizer = 0 if load.offloads_optimizer else ADAM / cut
    return int(shape.trained * (weight + gradient + optimizer))


def _activations(shape: ModelShape, load: Load) -> int:
    if not (shape.runs_llm and shape.learns_through_llm):
        return 0
    h, m, b = shape.hidden, shape.intermediate, load.bytes
    per_token = 8 * h + 4 * b * h + 3 * b * m
    per_token += (b + 1) * (6 * h + m) if shape.lora else 0
    per_token += (4 + 2 * b) * shape.heads * load.tokens if load.attention == "eager" else 0
    tokens = load.tokens * load.batch
    if load.checkpointing:
        return tokens * min(shape.layers * b * h + per_token, shape.layers * per_token)
    return tokens * shape.layers * per_token


def _logits(shape: ModelShape, load: Load) -> int:
    if not shape.runs_llm:
        return 0
    return load.batch * shape.vocabulary * (4 * load.bytes * load.tokens + 12 * load.answer_tokens)


def _vision(shape: ModelShape, load: Load) -> int:
    tower = (shape.tower_layers + 5) * shape.tower_width + 2 * shape.tower_intermediate
    blocks = 10 * shape.projector_blocks * shape.projector_width
    head = 4 * shape.hidden * shape.features
    if shape.lora:
        blocks = head = 0  # frozen, and no gradient passes them: nothing is kept
    return load.batch * load.images * load.bytes * (shape.patches * (tower + blocks) + head)
