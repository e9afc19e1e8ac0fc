"""What can be set: the safety modules (saved in `config.json`) and the recipe of a training run (YAML and flags).

The string under a field is its help text on the command line; its `Annotated` says what it may be (`safevlm.ranges`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from safevlm import paths, ranges
from safevlm.ranges import Amount, Count, Filled, Range, Weight

Grouping = Literal["none", "kind", "length"]
Quantization = Literal["none", "nf4", "int8"]
ProjectorKind = Literal["c_abstractor", "resampler", "mlp", "none"]
TensorKind = Literal["textual", "visual"]
Position = Literal["start", "after_image"]
BenignTerm = Literal["kl", "ce"]
Basis = Literal["pixels", "patches"]
Objective = Literal["trades", "madry"]
Goal = Literal["wrong", "clean"]
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]
PUBLISHED_BATCH = 128
"""Records per update in SafeVLM's both stages (methods §1.4)."""


@dataclass(frozen=True)
class SafetyConfig:
    """Sizes of the safety modules. The defaults are SafeVLM's for LLaVA-v1.5 (methods §1.1)."""

    projector: ProjectorKind = "c_abstractor"
    """c_abstractor (the paper's), resampler (latent queries), mlp, or none: no projector and no head."""
    projector_width: Count = 1088
    """Hidden width of the safety projector."""
    projector_depth: Count = 3
    """Blocks per stage of the c_abstractor; layers of the resampler."""
    projector_tokens: Count = 576
    """Safety features per image; a square for the c_abstractor, ignored by the mlp (one per patch)."""
    projector_standardize: bool = False
    """Every channel that the projector reads minus its mean, by its spread: numbers of the training images, taken once
    before stage 1. For image tokens with a large part in common, where a head learns nothing without."""
    lm_tokens: Amount = 64
    """Learnable tokens that go to the LLM in front of every image."""
    head_tokens: Amount = 64
    """Learnable tokens that go to the safety head in front of the safety features."""
    head_heads: Count = 8
    """Attention heads of the safety head."""
    reads_text: bool = False
    """True: the head's queries are the words of the request; False: it sees the image only."""
    taxonomy: dict[str, Any] | None = None
    """Categories and levels; none: the default ones."""

    def __post_init__(self) -> None:
        ranges.check(self, "safety")
        side = round(self.projector_tokens**0.5)
        if self.projector == "c_abstractor" and side * side != self.projector_tokens:
            raise ValueError(
                f"safety.projector_tokens: {self.projector_tokens} is not a square, which the c_abstractor needs; "
                f"use {side * side} or another projector"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The checkpoint that a run starts from, and how it is held."""

    path: Annotated[str, Filled()]
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

    def __post_init__(self) -> None:
        paths.expand_fields(self, "model", "path", "base", "taxonomy")
        ranges.check(self, "model")


@dataclass(frozen=True)
class DataConfig:
    """The records of a run, and what is done with them before training."""

    train: Annotated[list[str], Filled()]
    """Training records: JSON lists, JSONL, parquet or Arrow."""
    images: str = ""
    """Folder that relative image paths start from; empty: the folder of each record file."""
    clean: Amount | None = None
    """Draw so many clean records, with the run's seed; none: all. SafeVLM's stage 1 draws 3000."""
    exclude: list[str] = field(default_factory=list)
    """Lists of images to leave out, one path per line, as `safevlm audit` writes them (exclude.txt)."""
    relabel: str = ""
    """A concept bank of `safevlm embed`: SafeCLIP looks at all images first, and the answers about risky ones become
    refusals. For data that nobody has filtered."""
    pressure: Annotated[float, Range(least=0, most=1)] = 0.0
    """Share of the records that are asked as attackers ask: half of these with an answer that agrees forged into the
    question, half behind earlier turns of compliance. Their own answers are what is learned."""
    hints: bool = False
    """Put the mixer's hint into the prompts of risky records, as inference does."""
    max_length: Count = 2048
    """Longest sequence in tokens, image slots included; never more than the model has positions for."""
    group_by: Grouping = "none"
    """What the records of one step share, over all processes: kind is with or without an image, length includes it."""
    verify_images: bool = True
    """Decode every image once before training starts."""
    workers: Amount = 0
    """Processes that load data."""
    augment: list[str] = field(default_factory=list)
    """Changes of the images that head-only training (loss.lm: 0) draws from, each with its utmost strength if another
    than its own is wanted: `rotate:20`; docs/training.md lists them. Labels stay true under all of them."""
    augment_share: Annotated[float, Range(above=0, most=1)] = 0.5
    """Share of the images that are changed, drawn anew in every epoch."""
    feature_cache: str = ""
    """Folder that keeps what the vision tower makes of each image in head-only training (loss.lm: 0), for later runs
    too; empty: `features` in run.out, for a run of several epochs, removed when the run ends."""
    feature_cache_gb: Weight = 16.0
    """Gigabytes (1e9 bytes) that this folder may take; images beyond them go through the tower every time; 0: none."""

    def __post_init__(self) -> None:
        paths.expand_fields(self, "data", "train", "images", "exclude", "relabel", "feature_cache")
        ranges.check(self, "data")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms (methods §1.3)."""

    lm: Weight = 1.0
    level: Weight = 10.0
    category: Weight = 10.0

    def __post_init__(self) -> None:
        ranges.check(self, "loss")
        if not (self.lm or self.level or self.category):
            raise ValueError("loss: lm, level and category are all 0, so nothing is learned; give one of them a weight")


@dataclass(frozen=True)
class AdversarialSettings:
    """Adversarial training of the safety head (stage 1 with loss.lm: 0): each step makes changes of the pixels that
    mislead the head of that moment, through the frozen vision tower, and learns from clean and changed images."""

    epsilon: Annotated[float, Range(least=0, most=255)] = 0.0
    """Largest change of a pixel, on the scale of 0 to 255; 0: no adversarial training."""
    steps: Count = 5
    """Steps of gradient ascent (PGD) from a random start; 1: the fast method of arXiv 2001.03994."""
    step_size: Weight = 0.0
    """Change of a pixel in one step, on the same scale; 0: 2.5 epsilon / steps, and 1.25 epsilon for a single step."""
    goal: Goal = "wrong"
    """What an attack wants, and of which images. wrong: another label than is true, of all. clean: that a risky image
    passes, by level or category, whichever is easier; nobody gains by a harmless one that is refused."""
    objective: Objective = "trades"
    """trades: cross-entropy on clean images, and KL from what the head says of them to what it says of changed ones.
    madry: cross-entropy on both."""
    weight: Weight = 1.0
    """What the changed images count: of trades, the factor of the KL (1/lambda of its paper); of madry, their share of
    the loss, at most 1, which leaves clean ones out."""
    ramp: Annotated[float, Range(least=0, most=1)] = 0.3
    """Share of the updates in which epsilon grows from 0 to its value."""

    def __post_init__(self) -> None:
        ranges.check(self, "adversarial")
        if self.objective == "madry" and self.weight > 1:
            raise ValueError(f"adversarial.weight: {self.weight:g} is the share of changed images in madry; at most 1")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the LLM's linear layers, stage 2 only (methods §1.4)."""

    r: Count = 256
    alpha: Count = 16
    dropout: Annotated[float, Range(least=0, below=1)] = 0.05

    def __post_init__(self) -> None:
        ranges.check(self, "lora")


@dataclass(frozen=True)
class PartWeights:
    """Weights of the loss terms of a security tensor; each term is a mean over its part's answer tokens."""

    malicious: Weight = 1.0
    """Refusals."""
    contrastive: Weight = 1.0
    """The malicious questions about clean images."""
    benign: Weight = 1.0
    """Other questions about clean images."""

    def __post_init__(self) -> None:
        ranges.check(self, "tensor.weights")
        if not (self.malicious or self.contrastive or self.benign):
            raise ValueError(
                "tensor.weights: malicious, contrastive and benign are all 0, so nothing is learned; "
                "give one of them a weight"
            )


@dataclass(frozen=True)
class TensorSettings:
    """A security tensor, stage security_tensor only (methods §3)."""

    kind: TensorKind = "textual"
    """textual: virtual tokens in the prompt; visual: one change of the preprocessed pixels, for all images."""
    tokens: Count = 10
    """Virtual tokens of a textual tensor."""
    position: Position = "start"
    """Where they stand: before the whole prompt, or behind its last image."""
    init_std: Weight = 0.02
    """Spread of the random start; the paper's visual tensor starts at 0.2."""
    epsilon: Annotated[float, Range(least=0, most=255)] = 0.0
    """Largest change of a pixel by a visual tensor, on the scale of 0 to 255; 0: no bound."""
    basis: Basis = "pixels"
    """What the optimiser of a visual tensor moves: its pixels, as the paper does, or what the tower makes of each patch
    of them. What is saved are pixels."""
    benign: BenignTerm = "kl"
    """What holds the clean answers: kl to the untouched model's next-token probabilities, or ce on its own answers."""
    kl_words: Amount = 64
    """Likeliest next words whose probabilities are compared, all others as one; they are computed once. 0: every word,
    computed again in every epoch."""
    weights: PartWeights = PartWeights()
    held_out: Amount = 0
    """Pairs of each part that are kept from training, for the loss that chooses `best`."""

    def __post_init__(self) -> None:
        ranges.check(self, "tensor")
        for name, given in (("epsilon", self.epsilon), ("basis", self.basis != "pixels")):
            if given and self.kind == "textual":
                raise ValueError(f"tensor.{name} is about pixels; a textual tensor has none, leave it out")
        if self.epsilon and self.basis == "patches":
            raise ValueError("tensor.epsilon bounds pixels, and with tensor.basis: patches none is moved by itself")


@dataclass(frozen=True)
class ProbeSettings:
    """A probe on the LLM's hidden states, stage probe only."""

    layers: list[int] = field(default_factory=list)
    """Decoder layers that it reads, numbered from 1; none: the one behind the middle. No deeper one runs."""
    tokens: Count = 4
    """How many of the prompt's last tokens."""
    hidden: Count = 64
    """Its own width."""
    words: bool = False
    """Learn from, and look at, requests in words too."""

    def __post_init__(self) -> None:
        ranges.check(self, "probe")
        if min(self.layers, default=1) < 1 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"probe.layers: {self.layers}; different layers, numbered from 1")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer (AdamW), schedule and batches."""

    lr: Annotated[float, Range(above=0)] = 1e-5
    epochs: Annotated[float, Range(above=0)] = 3
    batch_size: Count = 2
    """Records per device and step."""
    effective_batch: Count | None = None
    """Records per update, over all processes; the steps per update follow from it. null: 128, as SafeVLM's both stages
    have, or what `accumulation` makes of it."""
    accumulation: Count | None = None
    """Steps per update, for a batch that grows with the number of processes; null: what `effective_batch` needs."""
    warmup_steps: Amount = 20
    """Updates in which the rate rises; fewer than the run has."""
    schedule: Schedule = "linear"
    """How the rate goes on from there; constant is without a warm-up."""
    weight_decay: Weight = 0.0
    max_grad_norm: Weight = 1.0
    """Longest gradient of an update; 0: any."""
    gradient_checkpointing: bool = False
    max_steps: Annotated[int, Range(least=1, also=(-1,))] = -1
    """Stop after so many updates; -1: by epochs."""

    def __post_init__(self) -> None:
        ranges.check(self, "optim")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and how it runs."""

    out: Annotated[str, Filled()]
    """Folder of the run: checkpoint-N, final, run.json."""
    seed: Annotated[int, Range(least=0, below=2**32)] = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = False
    """Mixed precision."""
    compile: bool = False
    """torch.compile for the LLM's layers: faster steps on a GPU, after a minute in which it compiles."""
    deepspeed: str | None = None
    """DeepSpeed's JSON: a file, or a shipped one by name: zero2, zero3, zero3_offload, zero2_cpu, zero3_cpu."""
    log_steps: Count = 10
    """Updates from one line of the log to the next."""
    save_steps: Count = 500
    """Updates from one checkpoint to the next."""
    keep: Count = 2
    """Checkpoints to keep; older ones are removed."""
    resume: bool = True
    """Go on from the newest checkpoint in `out`, if there is one."""
    report_to: list[str] = field(default_factory=list)
    """tensorboard, wandb, …"""

    def __post_init__(self) -> None:
        paths.expand_fields(self, "run", "out", "deepspeed")
        ranges.check(self, "run")


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    stage: Annotated[str, Filled()]
    """stage1 trains the safety modules, stage2 a LoRA on the LLM, security_tensor one tensor before frozen weights,
    robust_tower the vision tower, probe a detector on the LLM's hidden states; package.module:ROW is a stage of your
    own."""
    model: ModelConfig
    data: DataConfig
    run: RunConfig
    loss: LossWeights = LossWeights()
    lora: LoraSettings = LoraSettings()
    tensor: TensorSettings = TensorSettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    probe: ProbeSettings = ProbeSettings()
    optim: OptimConfig = OptimConfig()
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a stage of your own; ours have none."""

    def __post_init__(self) -> None:
        if self.data.relabel and not self.loss.lm:
            raise ValueError("data.relabel changes answers, and with loss.lm: 0 none is learned; leave one of them out")
        if self.data.feature_cache and self.loss.lm:
            raise ValueError(
                "data.feature_cache is for head-only training (loss.lm: 0), since beside the LLM the vision tower is "
                "1 to 2 % of a step; leave it out"
            )
        if self.data.feature_cache and self.run.deepspeed:
            raise ValueError(
                "data.feature_cache: not under run.deepspeed, which may cut the tower; leave one of them out"
            )
        self._check_changed_images()
        if self.run.compile and self.model.quantize != "none":
            raise ValueError(f"run.compile: layers of {self.model.quantize} weights cannot be compiled; leave out one")

    def _check_changed_images(self) -> None:
        """ValueError: something that does not go with images that are others each time."""
        changes = (
            "data.augment" if self.data.augment else "",
            "adversarial.epsilon" if self.adversarial.epsilon else "",
        )
        if self.adversarial.epsilon and self.loss.lm:
            raise ValueError(
                "adversarial.epsilon attacks the head alone, and needs head-only training (loss.lm: 0); leave it out"
            )
        for key in filter(None, changes):
            if self.data.feature_cache:
                raise ValueError(
                    f"data.feature_cache keeps what the tower made of an image, and with {key} the tower sees another "
                    "one each time; leave one of them out"
                )
        if self.adversarial.epsilon and self.run.deepspeed:
            raise ValueError(
                "adversarial.epsilon: not under run.deepspeed, which may cut the tower that the attack goes through; "
                "leave one of them out, torchrun works"
            )
