"""Detector: a probe on what the LLM itself makes of a request, by the hidden states of the prompt's last tokens.

Where the safety head sees what the tower sees, this reads what the LLM has understood, question and image together: an
image that was changed until the head calls it clean has to change the LLM's reading too, and then hardly gets the help
that it was made for. The trap is the reading's price: the prompt passes the LLM's lower layers once more, before it is
answered; and a request in words is none that a probe was taught on, unless its recipe says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.context import LM_TOKENS, DefenseContext, ModelFacts
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.read_outs import lead, likeliest
from safevlm.defenses.row import DefenseRow
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Request, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from safevlm.defenses.probe_file import StoredProbe

NAME = "probe"


class ProbeDetector:
    """Arg-max of both read-outs, as the safety head decides."""

    name = NAME

    def __init__(self, stored: StoredProbe) -> None:
        self.stored = stored

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if not features.images and not self.stored.reads_words:
            return Verdict.not_looked(self.name)
        logits = self.stored.probe(features.states(self.stored.layers, self.stored.tokens)[None])
        level = _probabilities(self.stored.levels, logits.level)
        category = _probabilities(self.stored.categories, logits.category)
        broken = "the probe's probabilities are not finite; the LLM's weights or its input are broken"
        return likeliest(level, category, self.name, broken)

    def margin(self, batch: Any) -> Tensor:
        """(b,) above 0 for a risk, with a gradient: what an attack pushes down. `batch` has `states(layers, tokens)`.

        Clean is what is clean by level or by category, so the easier of both counts.
        """
        import torch

        logits = self.stored.probe(batch.states(self.stored.layers, self.stored.tokens))
        leads = (
            lead(logits.level, self.stored.levels.index(SAFE)),
            lead(logits.category, self.stored.categories.index(CLEAN)),
        )
        return torch.minimum(*leads)


def _probabilities(names: tuple[str, ...], logits: Tensor) -> Mapping[str, float]:
    return dict(zip(names, logits[0].float().softmax(-1).tolist(), strict=True))


def _build(context: DefenseContext) -> Defense:
    from safevlm.defenses import probe_file  # late: it brings torch, and judges do without

    facts = context.fitting()
    if not facts.lm_layers:
        raise ValueError(
            f"defense {NAME} reads what the LLM makes of a request, and this model was loaded without its LLM, as in "
            f"front of another server; leave {NAME} out of --defense"
        )
    file = context.find(probe_file.FILE, "safevlm train miniature_probe --model.path MODEL --data.train FILE")
    stored = probe_file.read(file, context.policy.taxonomy)
    _check(file, stored, facts)
    stored.probe.to(facts.device)
    return Mixer(ProbeDetector(stored), context.policy)


def _check(file: Path, stored: StoredProbe, facts: ModelFacts) -> None:
    """ValueError: learned on states that this model has not."""
    from llava_patch.fingerprint import PARTS  # late: it brings torch
    from safevlm.defenses import learned_file

    if stored.width != facts.hidden_size or max(stored.layers) > facts.lm_layers:
        raise ValueError(
            f"{file}: reads layers {list(stored.layers)} of width {stored.width}; this model has {facts.lm_layers} of "
            f"width {facts.hidden_size}"
        )
    known = {**facts.base, **facts.lm_tokens} if facts.base else {}
    learned_file.check_base(file, stored.about, stored.base, known, (*PARTS, LM_TOKENS))


ROW = DefenseRow(
    NAME, _build, "a probe on the LLM's hidden states decides, the policy acts", takes_file=True, reads_folder=True
)
