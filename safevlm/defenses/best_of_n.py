"""`eta`: look before, look after, and only when both see harm, take the best of several fresh answers.

An ETA-like baseline (arXiv 2410.06625, methods §4): a detector of images, a reward of the answer, and best-of-n over
whole answers that begin with a short prefix. Ours in three ways: the image is judged by any detector we have, in
place of a raw CLIP cosine; the reward is pluggable (`safevlm.defenses.rewards`); candidates are whole answers chosen by
reward alone, without ETA's sentence-wise search and CLIP utility.

`eta=FILE` is a YAML file with the fields of `EtaOptions`. The trap: the best of n is not a good one by itself. When no
candidate reaches the threshold the best still goes out, and the trace says what it was worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from safevlm.defenses import prompts
from safevlm.defenses.base import Defense, Detector, ImageFeatures
from safevlm.defenses.calibration import Calibration
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.options import check_number, read_options
from safevlm.defenses.policy import Policy
from safevlm.defenses.rewards import Reward, RewardModel, reward_of, rewarded
from safevlm.defenses.row import DefenseRow
from safevlm.types import Reply, Request, Verdict


@dataclass(frozen=True)
class EtaOptions:
    detector: str = ""
    """Name of a detector; empty: safe-clip where the checkpoint has its bank, else the safety head."""
    risk: float | None = None
    """An image is risky from this 1 - p(clean) on; none: as the detector, or its calibration, decides."""
    reward: str = "phrases"
    """Of the answer: phrases, self-check, hf:DIR or hf:DIR#LABEL."""
    at_least: float = 1.0
    """An answer of less reward is unsafe. For `phrases`, 1 is a refusal."""
    n: int = 5
    """Candidates (paper)."""
    temperature: float = 0.7
    prefix: str = prompts.CAREFUL_START
    """How every candidate begins; empty for none."""
    seed: int = 0
    """Of the candidates: the same request gets the same ones."""
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.risk is not None:
            check_number("risk", self.risk, 0, 1)
        check_number("at_least", self.at_least, -math.inf, math.inf)
        check_number("n", self.n, 1, 1000, whole=True)
        check_number("temperature", self.temperature, 1e-3, 100)
        check_number("seed", self.seed, 0, 2**63 - 1, whole=True)
        check_number("max_new_tokens", self.max_new_tokens, 1, 1 << 16, whole=True)
        for key in ("detector", "reward", "prefix"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key}: {getattr(self, key)!r} is not a text")


def _build(context: DefenseContext) -> Defense:
    options = read_options(EtaOptions, context.file)
    name = options.detector or ("safe-clip" if _has_bank(context) else "safety-head")
    reward = reward_of(options.reward, context.facts.device if context.facts else "cpu")
    if context.facts and isinstance(reward, RewardModel):  # behind a real model: it is going to be asked
        reward.load()
    return Eta(context.detector(name), context.policy, reward, options)


class Eta(Defense):
    name = "eta"

    def __init__(self, detector: Detector, policy: Policy, reward: Reward, options: EtaOptions) -> None:
        self.detector, self.policy, self.reward, self.options = detector, policy, reward, options

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        verdict = self.policy.calibrated(self.detector.detect(request, features))
        if self.options.risk is None:
            return verdict
        return Calibration(risk=self.options.risk).read(verdict, self.policy.taxonomy)

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        if verdict.is_clean or verdict.error:  # with an error: unguarded by the caller's choice
            return reply
        options = self.options
        worth = rewarded(self.reward, self.ask, request, [reply.text])[0]
        if worth >= options.at_least:
            return _noted(reply, f"eta: a risky image, and an answer worth {worth:.2f}, which is enough")
        candidates = self._candidates(request)
        scores = rewarded(self.reward, self.ask, request, candidates)
        best = max(range(len(scores)), key=scores.__getitem__)
        note = f"eta: a risky image, and an answer worth {worth:.2f}; taken: the best of {options.n} extra answers"
        return _noted(replace(reply, text=candidates[best]), f"{note}, worth {scores[best]:.2f}")

    def _candidates(self, request: Request) -> list[str]:
        options = self.options
        texts = self.ask(
            [request] * options.n,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            answer_prefix=options.prefix,
        )
        return [f"{options.prefix} {text}".strip() for text in texts]


def _has_bank(context: DefenseContext) -> bool:
    from safevlm.defenses.bank import BANK_FILE  # late: it brings torch, and prompts and policies do without

    return any((folder / BANK_FILE).is_file() for folder in context.folders)


def _noted(reply: Reply, note: str) -> Reply:
    return replace(reply, trace=(*reply.trace, note))


ROW = DefenseRow(
    Eta.name,
    _build,
    "the best of n answers where image and answer are risky (ETA-like)",
    takes_file=True,
    reads_folder=True,
)
