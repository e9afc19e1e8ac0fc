"""LLaVA with safety tokens, a safety projector and a safety head.

    pixels ─▶ tower ─▶ patches ─┬─▶ projector (stock) ─▶ [lm tokens | image tokens] ─▶ LLM
                                └─▶ safety projector ─▶ [head tokens | safety features] ─▶ safety head

Every parameter of ours has a name that starts with `safety_`; freezing, saving and tests rely on that prefix.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers import initialization as init
from transformers.cache_utils import Cache

from llava_patch import checkpoints, classes, fields, image_tokens, parts, processor, vision
from safevlm.config import SafetyConfig
from safevlm.model import projector
from safevlm.model.head import HeadLogits, SafetyHead
from safevlm.model.tokens import STD, TokenBank
from safevlm.taxonomy import DEFAULT, Taxonomy

PREFIX = "safety_"
IGNORED = -100
"""Label of what is not to be learnt, as in transformers and `safevlm.data.collate`."""


class SafeLlavaConfig(classes.Config):
    """LLaVA's config and a safety section; everything needed to rebuild the model."""

    model_type = "safe_llava"

    safety: dict[str, Any] | None = None
    """`SafetyConfig` as a dict; none: a LLaVA without safety modules."""
    policy: dict[str, Any] | None = None
    """What to do per category and level, as in a policy file; none: SafeVLM's rule."""
    base_checkpoint: str | None = None
    """Folder of the weights that this checkpoint does not hold itself (`safevlm.model.loading`)."""

    @property
    def safety_config(self) -> SafetyConfig:
        """The safety section, typed."""
        return SafetyConfig(**self.safety) if self.safety else NO_SAFETY

    @property
    def taxonomy(self) -> Taxonomy:
        """Categories and levels that the head was trained on; without any in the config, the default ones."""
        table = self.safety_config.taxonomy
        return Taxonomy.from_dict(table) if table else DEFAULT

    @classmethod
    def from_llava(cls, config: classes.Config, safety: SafetyConfig) -> SafeLlavaConfig:
        """A stock config with a safety section; the stock config is not touched."""
        if safety.taxonomy is None and safety.projector != "none":
            safety = SafetyConfig(**{**asdict(safety), "taxonomy": DEFAULT.to_dict()})
        if isinstance(config, cls):
            raise TypeError("this config has a safety section already")
        table = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
        return cls(**table, safety=asdict(safety))


NO_SAFETY = SafetyConfig(projector="none", lm_tokens=0, head_tokens=0)


@dataclass
class SafeLlavaOutput(classes.Output):
    """LLaVA's output and the head's logits."""

    level_logits: Tensor | None = None
    """(b, levels), when the model has a head, and `pixel_values` and `input_ids` were given; of a row without an image
    they mean nothing. Softmax gives the probabilities of `config.taxonomy.level_names`."""
    category_logits: Tensor | None = None
    """(b, categories), likewise; `config.taxonomy.category_names`."""
    idle: Tensor | None = None
    """A zero to add to the loss; in training, for a batch without an image (`SafeLlava._idle`)."""


class SafeLlava(classes.Model):
    """A LLaVA with safety modules as its config says; without any it computes what stock LLaVA does, bit for bit."""

    config_class = SafeLlavaConfig
    config: SafeLlavaConfig

    def __init__(self, config: SafeLlavaConfig) -> None:
        super().__init__(config)
        safety, width = config.safety_config, fields.hidden_size(config)
        if safety.projector == "c_abstractor" and fields.keeps_cls(config):
            raise ValueError("safety.projector: the c_abstractor needs a square grid of patches, without CLS")
        self.safety_lm_tokens = TokenBank(safety.lm_tokens, width) if safety.lm_tokens else None
        if self.safety_lm_tokens is not None:
            image_tokens.attach(self, self.safety_lm_tokens.prepend)
        self.safety_projector = projector.build(safety, fields.patch_width(config), width)
        self.safety_head = self._build_head(config) if self.safety_projector is not None else None
        self.post_init()

    @staticmethod
    def _build_head(config: SafeLlavaConfig) -> SafetyHead:
        safety, taxonomy = config.safety_config, config.taxonomy
        return SafetyHead(
            width=fields.hidden_size(config),
            heads=safety.head_heads,
            tokens=safety.head_tokens,
            levels=len(taxonomy.levels),
            categories=len(taxonomy.categories),
            reads_text=safety.reads_text,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # `init` skips weights that a checkpoint brought; writing `.data` here would wipe trained weights on load.
        if isinstance(module, TokenBank):
            init.normal_(module.latent, std=STD)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        else:
            super()._init_weights(module)

    @property
    def slots(self) -> int:
        """`<image>` tokens per image in `input_ids`."""
        return processor.slots_per_image(self.config, self.config.safety_config.lm_tokens)

    @property
    def reads_text(self) -> bool:
        """Whether there is a head, and its verdict hangs on the words."""
        return self.safety_head is not None and self.safety_head.reads_text

    def encode_images(self, pixel_values: Tensor) -> vision.VisionPass:
        """(i, 3, h, w) → one vision pass; the only place that runs the tower."""
        return vision.encode_images(self, pixel_values)

    def project(self, patches: Tensor) -> Tensor:
        """(i, p, v) → (i, n, d): what stands in the image slots, LM tokens included."""
        return vision.project(self, patches)

    def safety_features(self, patches: Tensor) -> Tensor:
        """(i, p, v) → (i, q, d)."""
        return self._projector()(patches.to(_dtype_of(self._projector())))

    def judge(
        self,
        patches: Tensor,
        images_per_row: list[int],
        words: Tensor | None = None,
        word_mask: Tensor | None = None,
    ) -> HeadLogits:
        """The head's verdict on rows of images, row after row in `patches`.

        Only a head that reads text needs `words` (b, w), ids, and `word_mask` (b, w), True at words.
        """
        head = self._head()
        _check_images(len(patches), images_per_row)
        features, mask = _rows(self.safety_features(patches), images_per_row)
        embedded = self.get_input_embeddings()(words) if head.reads_text and words is not None else None
        return head(features, mask, embedded, word_mask)

    def forward(  # generate() inspects these names; *args would make it refuse pixel_values (base facts §3.5)
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        safety_words: Tensor | None = None,
        safety_word_mask: Tensor | None = None,
        skip_lm: bool = False,
        **kwargs: Any,
    ) -> SafeLlavaOutput:
        """Stock LLaVA's forward, and the head's logits wherever there are pixels and a head.

        The LLM's logits and the loss are what they are without the head. It costs 85 GFLOP per image with the default
        projector on 7B, 1 % of the LLM's 8.5 TFLOP for a prompt of 640 tokens (counted with torch's FlopCounterMode).
        `generate` encodes images itself, before its first step, and does not judge.

        `safety_words` (b, w) and `safety_word_mask` (b, w), True at words: what a head that reads text is to read
        (`safevlm.data.chat.question_ids`); by default the tokens of `input_ids` below `attention_mask` that are neither
        image slots nor labelled. `skip_lm` leaves the LLM out (head-only training): the head's logits are all that the
        output holds. ValueError: images and image slots differ in number; words without a mask.
        """
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("give pixel_values or mm_encoder_outputs, not both")
        words = partial(self._words, safety_words, safety_word_mask, input_ids, attention_mask, labels)
        verdict = patches = idle = None
        if pixel_values is not None:
            images_per_row = None if input_ids is None else self.images_per_row(input_ids)
            if images_per_row is not None:
                _check_images(len(pixel_values), images_per_row)
            patches = self.encode_images(pixel_values).patches
            if self.safety_head is not None and input_ids is not None and images_per_row is not None:
                verdict = self.judge(patches, images_per_row, *words())
        elif self.training:
            idle = self._idle(*words())
        logits: dict[str, Any] = {
            "level_logits": verdict.level if verdict else None,
            "category_logits": verdict.category if verdict else None,
            "idle": idle,
        }
        if skip_lm:
            return SafeLlavaOutput(**logits)
        if not parts.has_lm(self):
            raise ValueError("this model was loaded without its LLM; it can encode and judge images, but not answer")
        if patches is not None:
            mm_encoder_outputs = vision.as_encoder_outputs(self.project(patches).unbind())
        if self.training:  # the Trainer says so to LLaVA's config, and the LLM asks its own
            kwargs.setdefault("use_cache", False)
        output = super().forward(
            **vision.lm_inputs(self, input_ids, inputs_embeds, mm_encoder_outputs),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        return SafeLlavaOutput(**output, **logits)

    def _words(
        self,
        words: Tensor | None,
        word_mask: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Ids for the head and where they are words; of `input_ids`: no image slot, padding or answer."""
        if words is not None and word_mask is None:
            raise ValueError("safety_words need their safety_word_mask (b, w), True at words")
        if words is not None or word_mask is not None or input_ids is None:
            return (input_ids if words is None else words), word_mask
        mask = input_ids != fields.image_token_id(self.config)
        if isinstance(attention_mask, Tensor) and attention_mask.shape == mask.shape:  # generate may hand other forms
            mask = mask & attention_mask.bool()
        return input_ids, (mask if labels is None else mask & (labels == IGNORED))

    def _idle(self, words: Tensor | None, word_mask: Tensor | None) -> Tensor | None:
        """Zero, by way of a blank image: it brings every safety weight a gradient of zeros in the usual order.

        ZeRO-2 fills its buckets in the order in which gradients arrive. A process whose batch has no image must
        bring the same gradients in the same order, else weights get each other's gradients, without an error
        (tests/training/test_processes.py). ZeRO-3 is stricter: there all processes get records of one kind
        (`safevlm.data.batches`).
        """
        trains = any(weight.requires_grad for name, weight in self.named_parameters() if is_safety_name(name))
        if not trains or not torch.is_grad_enabled():
            return None
        blank = vision.blank_images(self, 1)
        patches = self.encode_images(blank).patches
        reached = []
        if self.safety_head is not None and words is not None and word_mask is not None:
            verdict = self.judge(patches, [1], words[:1], word_mask[:1])
            reached += [verdict.level, verdict.category]
        reached.append(self.project(patches))
        return sum((tensor.float().sum() for tensor in reached), blank.new_zeros((), dtype=torch.float32)) * 0.0

    def images_per_row(self, input_ids: Tensor) -> list[int]:
        """Images of each row, from the number of its image slots; ValueError when slots are left over."""
        slots = (input_ids == fields.image_token_id(self.config)).sum(1)
        if (slots % self.slots).any():
            raise ValueError(
                f"image slots per row {slots.tolist()} are no multiple of the model's {self.slots} per image; "
                "prepare the prompt with this checkpoint's own processor"
            )
        return (slots // self.slots).tolist()

    def _head(self) -> SafetyHead:
        if self.safety_head is None:
            raise ValueError("this checkpoint has no safety head; train one with a stage-1 recipe")
        return self.safety_head

    def _projector(self) -> nn.Module:
        if self.safety_projector is None:
            raise ValueError("this checkpoint has no safety projector; train one with a stage-1 recipe")
        return self.safety_projector


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Type to compute in; the packed bytes of a quantised weight are none."""
    return next(weight.dtype for weight in module.parameters() if weight.is_floating_point())


def is_safety_name(name: str) -> bool:
    """Whether a parameter is ours. PEFT puts its own prefix in front."""
    return name.removeprefix("base_model.model.").startswith(PREFIX)


def _check_images(images: int, images_per_row: list[int]) -> None:
    if images != sum(images_per_row):
        raise ValueError(f"{images} images, but the prompts have slots for {images_per_row} per row")


def _rows(features: Tensor, images_per_row: list[int]) -> tuple[Tensor, Tensor]:
    """(i, q, d) → (b, most images · q, d) and its mask; rows without an image are empty."""
    per_image, most = features.shape[1], max([1, *images_per_row])
    rows = features.new_zeros(len(images_per_row), most * per_image, features.shape[2])
    mask = torch.arange(most * per_image, device=features.device) < torch.tensor(
        [[count * per_image] for count in images_per_row], device=features.device
    )
    return rows.masked_scatter(mask.unsqueeze(-1), features), mask


checkpoints.keep_llava_names("SafeLlava")
AutoConfig.register(SafeLlavaConfig.model_type, SafeLlavaConfig)
AutoModelForImageTextToText.register(SafeLlavaConfig, SafeLlava)
AutoProcessor.register(SafeLlavaConfig, classes.Processor)
