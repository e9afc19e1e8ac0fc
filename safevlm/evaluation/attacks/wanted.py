"""The answer that an attacker wants: behind the prompt as the guarded model reads it, and how likely it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from safevlm.defenses import Inputs
from safevlm.engine.encoder import Encoder
from safevlm.engine.guard import GuardedRequest, readable
from safevlm.model.image_features import LazyImageFeatures
from safevlm.types import Request, Verdict


@dataclass(frozen=True)
class Wanted:
    """A request, as its defense has the model asked, with the wanted answer behind the prompt."""

    request: Request
    ids: Tensor
    """(t,)."""
    tokens: int
    """Of the answer, at the end."""

    @classmethod
    def of(cls, encoder: Encoder, request: Request, features: LazyImageFeatures, answer: str) -> Wanted:
        """ValueError: the request has no prompt, or leaves no room for the answer."""
        asked, answered = (readable(encoder.prompts([request], [features], prefix)[0]).ids for prefix in ("", answer))
        pairs = enumerate(zip(asked, answered, strict=False))
        start = next((at for at, (own, other) in pairs if own != other), len(asked))
        return cls(request, torch.tensor(answered, device=encoder.device), len(answered) - start)

    def turn(self, engine: Any, encoder: Encoder, features: LazyImageFeatures, verdict: Verdict) -> GuardedRequest:
        """As the engine's model gets it, what the defense adds to the tensors included."""
        before = Inputs(self.ids, features.pixel_values, image_token_id=encoder.image_token_id)
        inputs = engine.defense.transform(before, verdict)
        return GuardedRequest(self.request, verdict, self.request, features, inputs)


def answer_losses(
    engine: Any, encoder: Encoder, turns: Sequence[GuardedRequest], tokens: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(b,) each: mean negative log-likelihood of the answer at each turn's end, and whether greedy decoding says it.

    `tokens`: of each answer.
    """
    encoded, longest = encoder.batch(turns), max(tokens)
    logits = engine.model(**encoded.model_inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
    targets = encoded.input_ids[:, -longest:]
    counts = torch.tensor(list(tokens), device=targets.device)
    is_answer = torch.arange(longest, device=targets.device) >= longest - counts[:, None]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * is_answer
    return each.sum(-1) / counts, ((logits.argmax(-1) == targets) | ~is_answer).all(-1)
