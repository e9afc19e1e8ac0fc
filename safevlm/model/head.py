"""The safety head: one attention over [head tokens ; safety features], two read-outs.

    b requests · m features (all images of a request) · h head tokens · t words · d LLM width

SafeVLM's head takes the first text position as its query, a constant, so it never sees the question (methods §1.9,
traps 1 and 2). Here the choice is open: learned query (`reads_text` False; the verdict is the image's alone), or
every word of the request as a query, averaged under the mask (True; invariant to padding).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safevlm.config import SafetyConfig
from safevlm.model.tokens import TokenBank
from safevlm.taxonomy import Taxonomy


@dataclass(frozen=True)
class HeadLogits:
    """The head's two read-outs, before softmax."""

    level: Tensor
    """(b, levels)."""
    category: Tensor
    """(b, categories)."""


class OneQueryAttention(nn.MultiheadAttention):
    """Attention of a single query, with the products in another order: the same function, to rounding.

    Keys and values of d numbers each would be made of every feature. One query wants of a key only its product with it,
    and of the values only their mean: so the query goes through the keys' weights, and the mean through the values'.
    """

    def forward(self, query: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]  # fewer kinds
        """(b, 1, d), (b, m, d), (b, m) bool, True at what is there (none: all) → (b, 1, d). Of nothing: as torch's."""
        heads, width = self.num_heads, self.embed_dim
        of_query, of_key, of_value = (weight.unflatten(0, (heads, -1)) for weight in self.in_proj_weight.chunk(3))
        # a key's bias adds the same to every score
        bias_of_query, _, bias_of_value = (bias.unflatten(0, (heads, -1)) for bias in self.in_proj_bias.chunk(3))
        asked = torch.einsum("bd,hcd->bhc", query.squeeze(1), of_query) + bias_of_query
        asked = torch.einsum("bhc,hcd->bhd", asked, of_key) / (width // heads) ** 0.5
        shares = _shares(asked @ features.transpose(1, 2), mask)
        values = torch.einsum("bhd,hcd->bhc", shares @ features, of_value) + bias_of_value * shares.sum(-1, True)
        return self.out_proj(values.flatten(1)).unsqueeze(1)


class SafetyHead(nn.Module):
    """Image features, and the question's words if `reads_text`, → severity level and risk category.

    `heads` of the attention must divide `width`; `tokens`: learned head tokens, 0 for none.
    """

    def __init__(self, width: int, heads: int, tokens: int, levels: int, categories: int, reads_text: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"safety.head_heads: {heads} does not divide the LLM's width {width}")
        self.tokens = TokenBank(tokens, width) if tokens else None
        self.query = None if reads_text else TokenBank(1, width)
        self.attention = (nn.MultiheadAttention if reads_text else OneQueryAttention)(width, heads, batch_first=True)
        self.level = nn.Linear(width, levels)
        self.category = nn.Linear(width, categories)

    @property
    def reads_text(self) -> bool:
        """Whether the verdict depends on the request's words; if not, it can be cached per image."""
        return self.query is None

    def forward(
        self,
        features: Tensor,
        feature_mask: Tensor | None = None,
        words: Tensor | None = None,
        word_mask: Tensor | None = None,
    ) -> HeadLogits:
        """(b, m, d), (b, m) bool, (b, t, d), (b, t) bool → logits. Masks are True where something is; none: everywhere.

        `words` are the LLM's input embeddings of the request; only a head that reads text looks at them.
        """
        keys, mask = self._keys(features, feature_mask)
        if self.query is not None:
            seen = self.attention(self.query(keys.shape[0]).to(keys.dtype), keys, mask)[:, 0]
        else:
            if words is None or word_mask is None:
                raise ValueError("this head reads text: give the request's word embeddings and their mask")
            words = words.to(keys.dtype)
            # the residual lets the words speak for themselves; attention alone passes on image content only
            seen = _masked_mean(words + self._attend(words, keys, mask), word_mask)
        return HeadLogits(level=self.level(seen), category=self.category(seen))

    def _keys(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.tokens is None:
            return features, mask
        tokens = self.tokens(features.shape[0]).to(features.dtype)
        if mask is not None:
            mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], 1)
        return torch.cat([tokens, features], 1), mask

    def _attend(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        unseen = None if mask is None else ~mask
        return self.attention(queries.to(keys.dtype), keys, keys, key_padding_mask=unseen, need_weights=False)[0]


def _shares(scores: Tensor, mask: Tensor | None) -> Tensor:
    """(b, heads, m), (b, m) → the softmax of what is there, 0 elsewhere."""
    if mask is None:
        return scores.softmax(-1)
    absent = ~mask.unsqueeze(1)
    return scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(absent, 0)


def build(safety: SafetyConfig, taxonomy: Taxonomy, width: int) -> SafetyHead:
    """The head that a config's safety section and taxonomy say; `width`: d, the LLM's."""
    return SafetyHead(
        width=width,
        heads=safety.head_heads,
        tokens=safety.head_tokens,
        levels=len(taxonomy.levels),
        categories=len(taxonomy.categories),
        reads_text=safety.reads_text,
    )


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(b, t, d), (b, t) → (b, d)."""
    weights = mask.unsqueeze(-1).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)
