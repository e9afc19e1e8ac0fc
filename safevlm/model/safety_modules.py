"""What every model of ours has beside its family's own parts: safety projector and safety head, and how they judge.

Every parameter of ours has a name that starts with `safety_`; freezing, saving and tests rely on that prefix.

    i images · p patches of an image · v their width · q safety features of an image · d LLM width · b requests
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import initialization as init

from safevlm.backbones import config_facts
from safevlm.model import head as heads
from safevlm.model import projector
from safevlm.model.head import HeadLogits, SafetyHead
from safevlm.model.standardizer import Standardizer
from safevlm.model.tokens import STD, TokenBank

PREFIX = "safety_"
IGNORED = -100
"""Label of what is not to be learnt, as in transformers and `safevlm.data.collate`."""

Patches = Tensor | Sequence[Tensor]
"""(i, p, v), or one (p, v) per image where images differ in p."""


class SafetyModules:
    """In front of a family's model class."""

    config: Any
    safety_lm_tokens: TokenBank | None
    safety_standardizer: Standardizer | None
    safety_projector: nn.Module | None
    safety_head: SafetyHead | None

    def add_guard(self, config: Any, patch_width: int, width: int) -> None:
        """Builds projector and head as the config says; both are None where it says `none`."""
        self.safety_projector = projector.build(config.safety_config, patch_width, width)
        stands = self.safety_projector is not None and config.safety_config.projector_standardize
        self.safety_standardizer = Standardizer(patch_width) if stands else None
        self.safety_head = None
        taxonomy = config.taxonomy
        self.level_names, self.category_names = taxonomy.level_names, taxonomy.category_names
        """What the head's logits are of, in order."""
        if self.safety_projector is not None:
            self.safety_head = heads.build(config.safety_config, taxonomy, width)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # `init` skips weights that a checkpoint brought; writing `.data` here would wipe trained weights on load.
        if isinstance(module, TokenBank):
            init.normal_(module.latent, std=STD)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, Standardizer):
            module.start_anew()
        else:
            super()._init_weights(module)  # type: ignore[misc]  # the family's

    @property
    def reads_text(self) -> bool:
        """Whether there is a head, and its verdict hangs on the words."""
        return self.safety_head is not None and self.safety_head.reads_text

    def safety_features(self, patches: Tensor) -> Tensor:
        """(i, p, v) → (i, q, d)."""
        return self._projector()(self._ready(patches))

    def judge(
        self,
        patches: Patches,
        images_per_row: list[int],
        words: Tensor | None = None,
        word_mask: Tensor | None = None,
    ) -> HeadLogits:
        """The head's verdict on rows of images, row after row in `patches`.

        Only a head that reads text needs `words` (b, w), ids, and `word_mask` (b, w), True at words.
        """
        head = self._head()
        check_images(len(patches), images_per_row)
        if isinstance(patches, Tensor):
            features, mask = _rows(self.safety_features(patches), images_per_row)
        else:
            features, mask = _ragged_rows(self._ragged_features(patches), images_per_row)
        embedded = self.get_input_embeddings()(words) if head.reads_text and words is not None else None  # type: ignore[attr-defined]  # the family's
        return head(features, mask, embedded, word_mask)

    def _ragged_features(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """(p, v) each → (q, d) each, in one call of the projector."""
        sizes = [len(own) for own in patches]
        padded = self._ready(pad_sequence(list(patches), batch_first=True))
        if len(set(sizes)) == 1:
            return list(self._projector()(padded))
        mask = torch.arange(padded.shape[1], device=padded.device) < torch.tensor(sizes, device=padded.device)[:, None]
        made = self._projector()(padded, mask)
        is_per_patch = projector.is_per_patch(self._projector())
        return [own[:size] if is_per_patch else own for own, size in zip(made, sizes, strict=True)]

    def _ready(self, patches: Tensor) -> Tensor:
        """(i, p, v) as the projector reads them; one call for all images, since ZeRO-3 counts modules' calls."""
        read = patches if self.safety_standardizer is None else self.safety_standardizer(patches)
        return read.to(_dtype_of(self._projector()))

    def words_or_own(
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
        mask = input_ids != config_facts.image_token_id(self.config)
        if isinstance(attention_mask, Tensor) and attention_mask.shape == mask.shape:  # generate may hand other forms
            mask = mask & attention_mask.bool()
        return input_ids, (mask if labels is None else mask & (labels == IGNORED))

    def _head(self) -> SafetyHead:
        if self.safety_head is None:
            raise ValueError("this checkpoint has no safety head; train one with a stage-1 recipe")
        return self.safety_head

    def _projector(self) -> nn.Module:
        if self.safety_projector is None:
            raise ValueError("this checkpoint has no safety projector; train one with a stage-1 recipe")
        return self.safety_projector


def is_safety_name(name: str) -> bool:
    """Whether a parameter is ours. PEFT puts its own prefix in front."""
    return name.removeprefix("base_model.model.").startswith(PREFIX)


def check_images(images: int, images_per_row: list[int]) -> None:
    """ValueError: prompts have slots for another number of images."""
    if images != sum(images_per_row):
        raise ValueError(f"{images} images, but the prompts have slots for {images_per_row} per row")


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Type to compute in; the packed bytes of a quantised weight are none."""
    return next(weight.dtype for weight in module.parameters() if weight.is_floating_point())


def _rows(features: Tensor, images_per_row: list[int]) -> tuple[Tensor, Tensor | None]:
    """(i, q, d) → (b, most images · q, d) and its mask, None where all rows are full; without an image one is empty."""
    per_image, most = features.shape[1], max([1, *images_per_row])
    if min(images_per_row) == most:
        return features.reshape(len(images_per_row), most * per_image, -1), None
    rows = features.new_zeros(len(images_per_row), most * per_image, features.shape[2])
    mask = torch.arange(most * per_image, device=features.device) < torch.tensor(
        [[count * per_image] for count in images_per_row], device=features.device
    )
    return rows.masked_scatter(mask.unsqueeze(-1), features), mask


def _ragged_rows(features: Sequence[Tensor], images_per_row: list[int]) -> tuple[Tensor, Tensor]:
    """(q, d) each → (b, most features, d) and its mask; rows without an image are empty."""
    left = iter(features)
    empty = features[0][:0]
    rows = [torch.cat([empty, *(next(left) for _ in range(count))]) for count in images_per_row]
    lengths = torch.tensor([len(row) for row in rows], device=empty.device)
    padded = pad_sequence(rows, batch_first=True)
    return padded, torch.arange(padded.shape[1], device=empty.device) < lengths[:, None]
