"""What can be set: the safety modules (saved in `config.json`) and the recipe of a training run (YAML and flags).

The string under a field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Grouping = Literal["none", "kind", "length"]
Quantization = Literal["none", "nf4", "int8"]
ProjectorKind = Literal["c_abstractor", "resampler", "mlp", "none"]
TensorKind = Literal["textual", "visual"]
Position = Literal["start", "after_image"]
BenignTerm = Literal["kl", "ce"]
Basis = Literal["pixels", "patches"]


@dataclass(frozen=True)
class SafetyConfig:
    """Sizes of the safety modules. The defaults are SafeVLM's for LLaVA-v1.5 (methods §1.1)."""

    projector: ProjectorKind = "c_abstractor"
    """c_abstractor (the paper's), resampler (latent queries), mlp, or none: no projector and no head."""
    projector_width: int = 1088
    """Hidden width of the safety projector."""
    projector_depth: int = 3
    """Blocks per stage of the c_abstractor; layers of the resampler."""
    projector_tokens: int = 576
    """Safety features per image; a square for the c_abstractor, ignored by the mlp (one per patch)."""
    lm_tokens: int = 64
    """Learnable tokens that go to the LLM in front of every image."""
    head_tokens: int = 64
    """Learnable tokens that go to the safety head in front of the safety features."""
    head_heads: int = 8
    """Attention heads of the safety head."""
    reads_text: bool = False
    """True: the head's queries are the words of the request; False: it sees the image only."""
    taxonomy: dict[str, Any] | None = None
    """Categories and levels; none: the default ones."""

    def __post_init__(self) -> None:
        side = round(self.projector_tokens**0.5)
        if self.projector == "c_abstractor" and side * side != self.projector_tokens:
            raise ValueError(
                f"safety.projector_tokens: {self.projector_tokens} is not a square, which the c_abstractor needs; "
                f"use {side * side} or another projector"
            )
        for name in ("lm_tokens", "head_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"safety.{name}: {getattr(self, name)} is negative; use 0 for none")


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint that a run starts from, and how it is held."""

    path: str
    """Checkpoint to start from: a stock LLaVA, or one of ours."""
    safety: SafetyConfig = SafetyConfig()
    """Safety modules to add; a checkpoint that has them keeps its own."""
    base: str | None = None
    """Folder of the checkpoint's base model, if it has moved."""
    taxonomy: str | None = None
    """YAML with categories, levels and, optionally, a policy of your own; they become part of the checkpoint."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights: bfloat16 on a GPU, float32 on a CPU. What trains keeps float32 master weights."""
    quantize: Quantization = "none"
    """Hold the frozen LLM in 4 (nf4) or 8 bits (int8), by bitsandbytes; tower, projector and safety modules stay."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; flash_attention_2 wants the extra `flash` and a GPU."""


@dataclass(frozen=True)
class DataConfig:
    """The records of a run, and what is done with them before training."""

    train: list[str]
    """Training records, JSON lists or JSONL."""
    images: str = ""
    """Folder that relative image paths start from; empty: the folder of each record file."""
    clean: int | None = None
    """Draw so many clean records, with the run's seed; none: all. SafeVLM's stage 1 draws 3000."""
    exclude: list[str] = field(default_factory=list)
    """Lists of images to leave out, one path per line, as `safevlm audit` writes them (exclude.txt)."""
    relabel: str = ""
    """A concept bank of `safevlm embed`: SafeCLIP looks at all images first, and the answers about risky ones become
    refusals. For data that nobody has filtered."""
    hints: bool = False
    """Put the mixer's hint into the prompts of risky records, as inference does."""
    max_length: int = 2048
    """Longest sequence in tokens, image slots included; never more than the model has positions for."""
    group_by: Grouping = "none"
    """What the records of one step share, over all processes: kind is with or without an image, length includes it."""
    verify_images: bool = True
    """Decode every image once before training starts."""
    workers: int = 0
    """Processes that load data."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms (methods §1.3)."""

    lm: float = 1.0
    level: float = 10.0
    category: float = 10.0


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the LLM's linear layers, stage 2 only (methods §1.4)."""

    r: int = 256
    alpha: int = 16
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r: {self.r} is too small; at least 1")


@dataclass(frozen=True)
class PartWeights:
    """Weights of the loss terms of a security tensor; each term is a mean over its part's answer tokens."""

    malicious: float = 1.0
    """Refusals."""
    contrastive: float = 1.0
    """The malicious questions about clean images."""
    benign: float = 1.0
    """Other questions about clean images."""


@dataclass(frozen=True)
class TensorSettings:
    """A security tensor, stage security_tensor only (methods §3)."""

    kind: TensorKind = "textual"
    """textual: virtual tokens in the prompt; visual: one change of the preprocessed pixels, for all images."""
    tokens: int = 10
    """Virtual tokens of a textual tensor."""
    position: Position = "start"
    """Where they stand: before the whole prompt, or behind its last image."""
    init_std: float = 0.02
    """Spread of the random start; the paper's visual tensor starts at 0.2."""
    epsilon: float = 0.0
    """Largest change of a pixel by a visual tensor, on the scale of 0 to 255; 0: no bound."""
    basis: Basis = "pixels"
    """What the optimiser of a visual tensor moves: its pixels, as the paper does, or what the tower makes of each patch
    of them. What is saved are pixels."""
    benign: BenignTerm = "kl"
    """What holds the clean answers: kl to the untouched model's next-token probabilities, or ce on its own answers."""
    weights: PartWeights = PartWeights()
    held_out: int = 0
    """Pairs of each part that are kept from training, for the loss that chooses `best`."""

    def __post_init__(self) -> None:
        if self.kind == "textual" and self.tokens < 1:
            raise ValueError(f"tensor.tokens: {self.tokens} is too small; at least 1")
        for name, given in (("epsilon", self.epsilon), ("basis", self.basis != "pixels")):
            if given and self.kind == "textual":
                raise ValueError(f"tensor.{name} is about pixels; a textual tensor has none, leave it out")
        if self.epsilon and self.basis == "patches":
            raise ValueError("tensor.epsilon bounds pixels, and with tensor.basis: patches none is moved by itself")
        if not 0 <= self.epsilon <= 255:
            raise ValueError(f"tensor.epsilon: {self.epsilon} is no change of a pixel; between 0 (no bound) and 255")
        if self.held_out < 0:
            raise ValueError(f"tensor.held_out: {self.held_out} is negative; use 0 for none")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer (AdamW), schedule and batches."""

    lr: float = 1e-5
    epochs: float = 3
    batch_size: int = 2
    """Records per device and step."""
    accumulation: int = 8
    """Steps per update."""
    warmup_steps: int = 20
    schedule: str = "linear"
    """Any schedule that transformers knows: linear, cosine, constant_with_warmup, …"""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    max_steps: int = -1
    """Stop after so many updates; -1: by epochs."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name}: {getattr(self, name)} is too small; at least 1")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and how it runs."""

    out: str
    """Folder of the run: checkpoint-N, final, run.json."""
    seed: int = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = False
    """Mixed precision."""
    deepspeed: str | None = None
    """DeepSpeed's JSON: a file, or a shipped one by name: zero2, zero3, zero3_offload, zero2_cpu, zero3_cpu."""
    log_steps: int = 10
    save_steps: int = 500
    keep: int = 2
    """Checkpoints to keep; older ones are removed."""
    resume: bool = True
    """Go on from the newest checkpoint in `out`, if there is one."""
    report_to: list[str] = field(default_factory=list)
    """tensorboard, wandb, …"""


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    stage: str
    """stage1 trains the safety modules, stage2 a LoRA on the LLM, security_tensor one tensor before frozen weights;
    package.module:ROW is a stage of your own."""
    model: ModelConfig
    data: DataConfig
    run: RunConfig
    loss: LossWeights = LossWeights()
    lora: LoraSettings = LoraSettings()
    tensor: TensorSettings = TensorSettings()
    optim: OptimConfig = OptimConfig()
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a stage of your own; ours have none."""

    def __post_init__(self) -> None:
        if self.data.relabel and not self.loss.lm:
            raise ValueError("data.relabel changes answers, and with loss.lm: 0 none is learned; leave one of them out")
