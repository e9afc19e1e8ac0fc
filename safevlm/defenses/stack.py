"""A stack of defenses, `a+b`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from safevlm.defenses.base import REFUSED, Ask, Defense, ImageFeatures, Inputs, is_own
from safevlm.defenses.policy import Policy
from safevlm.defenses.verdicts import by_level, gravest, look, of_each_image
from safevlm.types import Reply, Request, Verdict


class Stack(Defense):
    """Several defenses as one: the gravest verdict goes to all of them, hooks run in order, reviews in reverse.

    Of two verdicts the one that `policy` acts on more strictly is the graver; without a policy the level decides. A
    member whose `detect` fails leaves its error in the verdict, beside what the others saw.
    """

    def __init__(self, members: Sequence[Defense], level_names: Sequence[str], policy: Policy | None = None) -> None:
        self.members = tuple(members)
        self.level_names = tuple(level_names)
        self.policy = policy
        self.name = "+".join(member.name for member in members)

    @property
    def detects(self) -> bool:
        return is_own(self, "detect", Stack) or any(member.detects for member in self.members)

    @property
    def reviews(self) -> bool:
        return is_own(self, "review", Stack) or any(member.reviews for member in self.members)

    @property
    def transforms(self) -> bool:
        return is_own(self, "transform", Stack) or any(member.transforms for member in self.members)

    def attach(self, ask: Ask) -> None:
        for member in self.members:
            member.attach(ask)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        verdicts = [look(member, request, features, f"{member.name}: ") for member in self.members]
        order = self._strictness, by_level(self.level_names)
        return dataclasses.replace(gravest(verdicts, *order), images=of_each_image(verdicts, *order))

    def _strictness(self, verdict: Verdict) -> int:
        if self.abstains(verdict):
            return REFUSED
        return self.policy.strictness(verdict) if self.policy else 0

    def abstains(self, verdict: Verdict) -> bool:
        return any(member.abstains(verdict) for member in self.members)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        for member in self.members:
            rewritten = member.rewrite(request, verdict)
            if isinstance(rewritten, Reply):
                return rewritten
            request = rewritten
        return request

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        for member in self.members:
            inputs = member.transform(inputs, verdict)
        return inputs

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        for member in reversed(self.members):
            reply = member.review(request, reply, verdict)
        return reply
