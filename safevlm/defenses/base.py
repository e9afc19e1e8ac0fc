"""The shape of a defense, and what the engine hands to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from safevlm.types import Reply, Request, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from safevlm.defenses.policy import Policy


class RiskView(Protocol):
    """What the checkpoint's safety head thinks: probabilities by name."""

    @property
    def level(self) -> Mapping[str, float]: ...

    @property
    def category(self) -> Mapping[str, float]: ...


class ImageFeatures(Protocol):
    """What one vision pass gave for a request; detectors share it and generation reuses it."""

    @property
    def images(self) -> int:
        """Number of images; 0 for a request in words."""

    @property
    def vision(self) -> Any:
        """`llava_patch.vision.VisionPass` of the request's images, computed on first use; None without images."""

    @property
    def risk(self) -> RiskView | None:
        """The head's opinion, computed on first use; None without images. ValueError without a head."""


@dataclass(frozen=True)
class VirtualTokens:
    """Learned vectors that the LLM reads as if they were tokens."""

    vectors: Tensor
    """(k, d)."""
    at: int
    """Index into the request's `input_ids` in front of which they stand; 0: before everything."""


@dataclass(frozen=True)
class Inputs:
    """One request as tensors, before padding and batching."""

    input_ids: Tensor
    """(t,), image slots included, virtual tokens not."""
    pixel_values: Tensor | None = None
    """(i, 3, h, w), preprocessed; None without images. Other pixels cost a second pass of the tower."""
    virtual: tuple[VirtualTokens, ...] = ()
    image_token_id: int = -1


class Ask(Protocol):
    """Puts requests to the bare model, with no defense in between, as one batch."""

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        answer_prefix: str = "",
    ) -> list[str]:
        """Answers in order. `answer_prefix` is put into the model's mouth and is not part of what is returned."""


class Defense:
    """One way of keeping an answer safe. Override a hook or two; the rest do nothing.

    Hooks get frozen objects and return new ones. A hook that raises makes the engine refuse the request.
    """

    name = "none"
    ask: Ask
    """Asks the bare model; set by `attach`."""

    @property
    def detects(self) -> bool:
        """Whether it looks at requests; it is then shown every frame of an animation."""
        return is_own(self, "detect", Defense)

    @property
    def reviews(self) -> bool:
        """Whether it wants to see whole answers; streaming then waits for the end."""
        return is_own(self, "review", Defense)

    @property
    def transforms(self) -> bool:
        """Whether it changes tensors of the prompt; a model behind a network cannot be asked so."""
        return is_own(self, "transform", Defense)

    def attach(self, ask: Ask) -> None:
        """The engine's word, once, before any hook: how to ask the model behind it."""
        object.__setattr__(self, "ask", ask)  # a defense may be a frozen dataclass

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        """Look."""
        return Verdict.not_looked(self.name)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        """Words in; a Reply answers at once, and the model is not asked."""
        return request

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        """Tensors in."""
        return inputs

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        """Words out."""
        return reply


def is_own(defense: Defense, hook: str, kind: type[Defense]) -> bool:
    """Whether a defense has another hook of this name than `kind`: by its class, or set on the object itself."""
    return getattr(getattr(defense, hook), "__func__", None) is not getattr(kind, hook)


class Detector(Protocol):
    """The looking half of a defense."""

    name: str

    def detect(self, request: Request, features: ImageFeatures) -> Verdict: ...


class Stack(Defense):
    """Several defenses as one: the gravest verdict goes to all of them, hooks run in order, reviews in reverse.

    Of two verdicts the one that `policy` acts on more strictly is the graver, since a policy may allow what is of a
    higher level, and must not thereby hide what it refuses. Without a policy the level decides.
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
        return max(
            (member.detect(request, features) for member in self.members),
            key=self._order,
        )

    def _order(self, verdict: Verdict) -> tuple[bool, int, tuple[bool, bool, bool, int]]:
        strictness = self.policy.strictness(verdict) if self.policy else 0
        return bool(verdict.error), strictness, gravity(verdict, self.level_names)

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


def gravity(verdict: Verdict, level_names: Sequence[str]) -> tuple[bool, bool, bool, int]:
    """A failure, then a risk, then a detector that looked and saw nothing, then none that looked; each by level."""
    return bool(verdict.error), not verdict.is_clean, verdict.looked, level_names.index(verdict.level)
