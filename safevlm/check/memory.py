"""How much memory one GPU needs: arithmetic on shapes.

An estimate. Of 15 training steps on one H200 (7B, one process, no DeepSpeed; eval/results/gpu) it lies between 1.4 %
below and 9.6 % above what the card had in use, and within 2.5 % of all but the smallest
(tests/check/test_memory_measured.py). Slack, fragmentation and a layer's work under checkpointing were set on these
same steps. Of one step of another family, head-only training of Qwen2.5-VL-7B, it lies 2.8 % below. DeepSpeed, several
processes and other sizes are not measured.

Bytes, for N processes; b is 2 with bf16 and 4 without.

* Frozen weights: b each (nf4: 0.5 + constants of 1/64 + 4/16384 = 0.516; int8: 1); 4 for those of safety modules where
  there is no DeepSpeed. ZeRO-3 leaves 1/N of them, or none with offload_param, and two layers that are gathered at a
  time. ZeRO-2 leaves them whole.
* What trains: an fp32 weight and Adam's two moments are 12, its gradient 4, and autocast's bf16 copy 2. Gradients come
  while activations and copies go, so both count at once only where gradients of an earlier micro-batch wait. Under
  DeepSpeed with bf16 it is 2 (weight) + 2 (gradient) + 12 (fp32 master and moments); ZeRO-1 divides the 12 by N, ZeRO-2
  the gradient too, ZeRO-3 all. offload_optimizer takes the 12 off the GPU. (Rajbhandari et al., arXiv 1910.02054, §3.)
* Activations of the LLM, per token and layer, through frozen linear layers, whose inputs autograd need not keep:
  8 h (two norms, fp32) + 4 b h (query, key, value, output of attention) + 3 b m (gate, activation, up), for hidden
  width h and intermediate width m. A LoRA with dropout keeps what is left of each input, and one byte for what was
  dropped: (b + 1) (6 h + m) more. bitsandbytes' int8 keeps its inputs, b (3 h + m), beside autograd, until the loss is
  gone, also under checkpointing. Eager attention keeps its probabilities: (4 + 2 b) heads x tokens. Gradient
  checkpointing keeps b h per layer, and a layer is at work in full: what it keeps, and as much of gradients.
  (Compare Korthikanti et al., arXiv 2205.05198: 34 h per token and layer for a trained GPT layer in 16 bits.)
  Nothing is kept where no gradient passes the LLM: head-only training, and stage 1 without LM tokens.
* Logits: 2 b per column and word (logits and their gradient) and 12 per answer token and word (fp32). Columns are the
  positions before labels of any row, the only ones that training asks the LLM about; those steps asked about all.
* Vision tower, under no_grad and gone before what follows it: its hidden states, fp32 because autocast's norms are, all
  of them where a family selects some, else two, and one layer at work. What the safety projector reads stays, fp32 and
  two copies to compute with: the patches, or in another family than LLaVA the image tokens. Where images differ in
  size, the largest of the sampled records tells how many.
* Safety projector. C-abstractor, per position and width of a block: 28 (inputs of three norms, two activations and the
  gate, and the sum, fp32, because autocast's norms are) + 3 b (inputs of three convolutions). Resampler, per layer and
  width: of a position 4 (input of a norm) + 3 b (input of keys and values, keys, values), of a query 8 (two norms) +
  13 b (inputs of the products for the query, the output and the MLP, query, what was seen; 8 of them in the MLP's wide
  middle). MLP: 2 b.
* Safety head, per feature and LLM's width: 6 b (read-out and its activation, keys in two orders, keys and values
  projected), and 33 for writing features into rows by a mask: prefix sums and the mask (9), and three indices in
  backward (24), each a block larger than the holes that others leave.
* 1.5 GiB: half of it CUDA's context and kernels, half what the allocator holds in reserve; 5 % of what moves for
  fragmentation. NCCL, where there are several processes: 0.5 GiB, a guess.

Three moments can be the worst: the forward pass ends, with all that it keeps; a checkpointed layer is computed again
before anything went; backward ends, with all gradients. The batch is taken to be the longest of the sampled records,
times the batch size: what runs out is the worst step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safevlm.config import ProjectorKind, Quantization

GIB = 2**30
CONTEXT = int(0.75 * GIB)
"""CUDA's, with the kernels that were loaded: what is in use beyond what torch has reserved."""
SLACK = int(0.75 * GIB)
"""What torch's allocator has reserved in a small program and not given out, and cuBLAS's workspace."""
NCCL = int(0.5 * GIB)
"""Its buffers; not measured."""
FRAGMENTATION = 0.05
DROPPED = 1
"""Dropout's mask. What is left of the input is kept in the type that is multiplied with, b, also where PEFT casts it to
float32 first: that copy is gone when the layer is left."""
SCATTER = 9 + 24
"""Bytes per value for `masked_scatter` in `safevlm.model.safe_llava`, forward and backward."""
KEPT: dict[ProjectorKind, Callable[[int, int, int, int], int]] = {
    "c_abstractor": lambda b, depth, read, _: 2 * depth * (7 * FP32 + 3 * b) * read,
    "resampler": lambda b, depth, read, queries: depth * ((FP32 + 3 * b) * read + (2 * FP32 + 13 * b) * queries),
    "mlp": lambda b, _, read, __: 2 * b * read,
    "none": lambda *_: 0,
}
"""What autograd keeps of an image in a safety projector, in bytes per unit of width: of b, depth, positions that are
read and queries."""
PACKED = {"nf4": 0.5 + 1 / 64 + 4 / 16384, "int8": 1.0}
"""Bytes of a packed weight: 4 bits and, per block of 64, an 8-bit constant that has fp32 ones in blocks of 256."""
LIVE_LAYERS = 2
"""Under ZeRO-3: one layer computes while the next is fetched."""
ADAM = 12
"""An fp32 weight (DeepSpeed's master) and two moments."""
FP32 = 4
BATCHES = (1, 2, 4, 8, 16)
"""Of the table."""


@dataclass(frozen=True)
class ModelShape:
    """The model and what of it trains; sizes in weights, widths and tokens."""

    llm: int
    """Frozen weights in the LLM's layers, the ones that can be packed."""
    other: int
    """All other frozen weights, but for those of safety modules."""
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
    """Of an image; where images differ in size, of a typical one."""
    read_width: int = 0
    """Of a position that the safety projector reads; 0: the tower's."""
    patches_per_read: int = 1
    """Patches that are joined in such a position."""
    is_one_size: bool = True
    """Whether all images have as many patches; if not, the records' image tokens tell how many."""
    keeps_states: bool = True
    """Whether the tower's hidden states of all layers are kept until it is done."""
    projector: ProjectorKind = "c_abstractor"
    projector_width: int = 0
    projector_depth: int = 0
    features: int = 0
    """Safety features and head tokens per image; 0: no head."""
    lora: bool = False
    learns_through_llm: bool = True
    """Whether gradients pass the LLM: to LM tokens or to a LoRA."""
    runs_llm: bool = True
    """False: head-only training."""
    frozen_safety: int = 0
    """Weights of safety modules that are frozen; they stay float32."""


@dataclass(frozen=True)
class Load:
    """The records of one step, and how they are trained on."""

    tokens: int
    answer_tokens: int
    images: int
    """Per record, like the tokens."""
    image_tokens: int = 0
    """Of an image, learned ones not counted; 0: the shape's typical image."""
    columns: int = 0
    """Positions whose next token is an answer's in any record of the batch; 0: the records' answers lie in the same."""
    batch: int = 1
    accumulates: bool = False
    """Whether an update has several micro-batches, so that gradients wait while the next is read."""
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
    """What one GPU must hold at the worst moment of the worst step."""
    return max(_moments(shape, load), key=lambda moment: moment.total)


def _moments(shape: ModelShape, load: Load) -> Iterator[MemoryEstimate]:
    looked, kept = _safety_modules(shape, load), _kept(shape, load)
    held, work, logits = _held(shape, load), _work(shape, load), _logits(shape, load)
    waiting = _trained(shape, load, gradients=load.accumulates)
    copies = 0 if load.stage else shape.trained * (load.bytes if load.bytes < FP32 else 0)
    at = functools.partial(_moment, shape, load)
    yield at(waiting, vision=_tower(shape, load))
    yield at(waiting + copies, kept + held, logits, looked)
    if load.checkpointing:
        yield at(waiting, kept + held + work, logits, looked)
    yield at(_trained(shape, load, gradients=True), held + work, vision=looked)


def _moment(
    shape: ModelShape, load: Load, trained: int, activations: int = 0, logits: int = 0, vision: int = 0
) -> MemoryEstimate:
    reserve = CONTEXT + SLACK + (NCCL if load.processes > 1 else 0)
    reserve += int(FRAGMENTATION * (activations + logits + vision))
    return MemoryEstimate(_frozen(shape, load), trained, activations, logits, vision, reserve)


def host(shape: ModelShape, load: Load) -> int:
    """What is offloaded, in bytes over all nodes: Adam's 12, and with offload_param the weights too."""
    weights = (shape.llm + shape.other + shape.frozen_safety + shape.trained) * load.bytes
    return (weights if load.offloads_weights else 0) + (ADAM * shape.trained if load.offloads_optimizer else 0)


def table(shape: ModelShape, load: Load, gpu: float, columns: Callable[[int], int]) -> list[str]:
    """GiB per GPU by ZeRO stage and batch size; `*` marks the recipe's, `!` what is over `gpu` GiB.

    `columns`: those of a batch of so many records.
    """
    sizes = sorted({*BATCHES, load.batch})
    lines = ["GiB per GPU        " + "".join(f"{f'batch {size}':>11}" for size in sizes)]
    loads = [dataclasses.replace(load, batch=size, columns=columns(size)) for size in sizes]
    for stage in _stages(load):
        cells = [_cell(shape, dataclasses.replace(tried, stage=stage), load, gpu) for tried in loads]
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
    whole = llm + shape.other * load.bytes + shape.frozen_safety * (load.bytes if load.stage else FP32)
    if load.stage < 3:
        return whole
    kept = 0 if load.offloads_weights else whole // load.processes
    gathered = LIVE_LAYERS * llm // max(1, shape.layers)
    return min(whole, kept + gathered)


def _trained(shape: ModelShape, load: Load, *, gradients: bool) -> int:
    """Weight and gradient in the working type and Adam's 12, each cut where the stage cuts it."""
    if not load.stage:
        return shape.trained * (ADAM + (FP32 if gradients else 0))
    cut = load.processes
    weight = load.bytes / (cut if load.stage >= 3 else 1)
    gradient = load.bytes / (cut if load.stage >= 2 else 1)
    optimizer = 0 if load.offloads_optimizer else ADAM / cut
    return int(shape.trained * (weight + gradient + optimizer))


def _layer(shape: ModelShape, load: Load) -> int:
    """What autograd keeps of one of the LLM's layers."""
    if not (shape.runs_llm and shape.learns_through_llm):
        return 0
    h, m, b = shape.hidden, shape.intermediate, load.bytes
    per_token = 8 * h + 4 * b * h + 3 * b * m
    per_token += (b + DROPPED) * (6 * h + m) if shape.lora else 0
    per_token += (4 + 2 * b) * shape.heads * load.tokens if load.attention == "eager" else 0
    return load.tokens * load.batch * per_token


def _kept(shape: ModelShape, load: Load) -> int:
    """What the forward pass leaves of all layers."""
    layer = _layer(shape, load)
    entry = load.tokens * load.batch * load.bytes * shape.hidden
    return shape.layers * (min(entry, layer) if load.checkpointing else layer)


def _work(shape: ModelShape, load: Load) -> int:
    """Of the layer whose gradients are computed."""
    return 2 * _layer(shape, load)


def _held(shape: ModelShape, load: Load) -> int:
    """What int8's layers hold by themselves: one input for query, key and value, one for gate and up, and two."""
    if load.quantize != "int8" or not _layer(shape, load):
        return 0
    per_token = load.bytes * (3 * shape.hidden + shape.intermediate)
    return load.tokens * load.batch * shape.layers * per_token


def _logits(shape: ModelShape, load: Load) -> int:
    if not shape.runs_llm:
        return 0
    columns = min(load.tokens, load.columns or load.answer_tokens)
    return load.batch * shape.vocabulary * (2 * load.bytes * columns + 12 * load.answer_tokens)


def _patches(shape: ModelShape, load: Load) -> int:
    """Of an image."""
    return shape.patches if shape.is_one_size else load.image_tokens * shape.patches_per_read or shape.patches


def _tower(shape: ModelShape, load: Load) -> int:
    states = FP32 * (2 + (shape.tower_layers if shape.keeps_states else 0)) * shape.tower_width
    work = load.bytes * (4 * shape.tower_width + 2 * shape.tower_intermediate)
    return load.batch * load.images * _patches(shape, load) * (states + work)


def _safety_modules(shape: ModelShape, load: Load) -> int:
    """Patches, and what autograd keeps of safety projector and head."""
    read = _patches(shape, load) // shape.patches_per_read
    patches = (FP32 + 2 * load.bytes) * (shape.read_width or shape.tower_width) * read
    kept = KEPT[shape.projector](load.bytes, shape.projector_depth, read, shape.features)
    projector = kept * shape.projector_width
    features = read if shape.projector == "mlp" else shape.features
    head = (6 * load.bytes + SCATTER) * shape.hidden * features
    if shape.lora:
        projector = head = 0  # frozen, and no gradient passes them: nothing is kept
    return load.batch * load.images * (patches + projector + head)
