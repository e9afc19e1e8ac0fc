"""Calls a defense's hooks for one request. Whatever breaks in a hook refuses that request: it fails closed."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from safevlm.defenses import Defense, Inputs, prompts
from safevlm.defenses.base import gravity
from safevlm.engine.checks import check_rewritten, settled
from safevlm.model.image_features import Frame, LazyImageFeatures
from safevlm.types import Reply, Request, Verdict

log = logging.getLogger(__name__)

Result = TypeVar("Result")
OnError = Literal["refuse", "allow"]
"""What becomes of a request whose detector failed."""


@dataclass(frozen=True)
class Decision:
    """A request that is let through, in the words in which the model is to be asked."""

    request: Request
    verdict: Verdict
    rewritten: Request


@dataclass(frozen=True)
class GuardedRequest:
    """A request on its way, with its tensors."""

    request: Request
    verdict: Verdict
    rewritten: Request
    features: LazyImageFeatures
    inputs: Inputs


class Guard:
    """A defense, and what to do when its detector fails."""

    def __init__(self, defense: Defense, on_error: OnError, level_names: Sequence[str]) -> None:
        """`level_names`: of the taxonomy, from the mildest. ValueError: an `on_error` that is not known."""
        check_on_error(on_error)
        self.level_names = level_names
        self.defense = defense
        self.on_error = on_error

    def detect(self, request: Request, features: LazyImageFeatures) -> Verdict:
        """The defense's verdict, on the gravest frame of an animation; with an `error` where the hook raised."""
        first = self._look(request, features)
        if not features.frames:
            return first
        try:
            return self._gravest(request, first, features.frames)
        except Exception as error:  # noqa: BLE001 - verdicts that cannot be compared: the same, fail closed
            return self._broken("detect", first, error)

    def _look(self, request: Request, features: LazyImageFeatures) -> Verdict:
        try:
            return _sound(given(Verdict, self.defense.detect(request, features)))
        except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the request through
            return self._broken("detect", Verdict.not_looked(self.defense.name), error)

    def _gravest(self, request: Request, first: Verdict, frames: Sequence[Frame]) -> Verdict:
        """The verdict that is acted on most strictly: a policy may allow what is graver, and refuse what is less."""
        told = f"{len(frames)} more frames of its images were looked at"
        verdicts = [dataclasses.replace(first, frame=f"the first frames; {told}")]
        for frame in frames:
            verdicts.append(dataclasses.replace(self._look(request, frame.features), frame=frame.name))
        return max(
            verdicts, key=lambda verdict: (self._strictness(request, verdict), gravity(verdict, self.level_names))
        )

    def _strictness(self, request: Request, verdict: Verdict) -> int:
        """What would come of a verdict: the request is let through, is changed, or is answered in the model's place."""
        if verdict.error:
            return 2 if self.on_error == "refuse" else 0
        try:
            rewritten = self.defense.rewrite(request, verdict)
        except Exception:  # noqa: BLE001 - it breaks again when it is acted on, and refuses the request
            return 2
        return 2 if isinstance(rewritten, Reply) else int(rewritten.text != request.text)

    def prepare(
        self,
        request: Request,
        features: LazyImageFeatures,
        encode: Callable[[Request, LazyImageFeatures], Inputs],
        check: Callable[[Inputs, Inputs], Inputs],
    ) -> GuardedRequest | Reply:
        """Runs the hooks before generation: the request with its tensors, or the reply given in the model's place.

        `check(after, before)`: what `transform` made of the request's tensors; it raises where the model could not read
        them.
        """
        decided = self.decide(request, features)
        if isinstance(decided, Reply):
            return decided
        verdict, rewritten = decided.verdict, decided.rewritten
        if verdict.error:
            return GuardedRequest(request, verdict, request, features, encode(request, features))
        hook = "rewrite"
        try:
            before = encode(rewritten, features)
            hook = "transform"
            inputs = check(given(Inputs, self.defense.transform(before, verdict)), before)
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return self._refusal(request, self._broken(hook, verdict, error))
        return GuardedRequest(request, verdict, rewritten, features, inputs)

    def decide(self, request: Request, features: LazyImageFeatures) -> Decision | Reply:
        """What becomes of a request, before any tensor of its prompt is made; a Reply in the model's place."""
        verdict = self.detect(request, features)
        if verdict.error:
            return Decision(request, verdict, request) if self.on_error == "allow" else self._refusal(request, verdict)
        try:
            rewritten = self.defense.rewrite(request, verdict)
            if isinstance(rewritten, Reply):
                asked = Reply(text="", request=request, verdict=verdict, trace=_looked(verdict))
                reply = settled(rewritten, asked)
                return dataclasses.replace(reply, refused_by=reply.refused_by or self.defense.name)
            return Decision(request, verdict, check_rewritten(request, given(Request, rewritten)))
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return self._refusal(request, self._broken("rewrite", verdict, error))

    def review(self, turn: GuardedRequest, text: str, prompt: str, told: tuple[str, ...] = ()) -> Reply:
        """The reply, once the model has answered `text` to `prompt`. `told`: lines of the trace about the answer."""
        trace = (*_trace(turn), *told)
        reply = Reply(text=text, request=turn.request, verdict=turn.verdict, prompt=prompt, trace=trace)
        try:
            return settled(given(Reply, self.defense.review(turn.request, reply, turn.verdict)), reply)
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            refusal = self._refusal(turn.request, self._broken("review", turn.verdict, error))
            return dataclasses.replace(refusal, prompt=prompt)

    def _broken(self, hook: str, verdict: Verdict, error: Exception) -> Verdict:
        log.error("defense %s failed in %s: %s", self.defense.name, hook, error, exc_info=error)
        return dataclasses.replace(verdict, error=f"{hook}: {type(error).__name__}: {error}")

    def _refusal(self, request: Request, verdict: Verdict) -> Reply:
        return Reply(
            text=prompts.REFUSAL_ON_ERROR,
            request=request,
            verdict=verdict,
            refused_by=self.defense.name,
            trace=(f"refused: the defense failed ({verdict.error})",),
        )


def check_on_error(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} is unknown; one of {list(get_args(OnError))}")


def given(kind: type[Result], value: object) -> Result:
    """`value`, if it is of this type; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"gave {value!r}, not a {kind.__name__}")
    return value


def _sound(verdict: Verdict) -> Verdict:
    """ValueError: a probability is no number, so whatever was chosen by it is chosen by chance."""
    tables = {"level": verdict.level_probabilities, "category": verdict.category_probabilities}
    for kind, table in tables.items():
        for name, probability in table.items():
            if not math.isfinite(probability):
                raise ValueError(f"the probability of the {kind} {name} is {probability}")
    return verdict


def _trace(turn: GuardedRequest) -> tuple[str, ...]:
    if turn.verdict.error:
        return (f"unguarded: the defense failed ({turn.verdict.error}) and the caller chose to go on",)
    asked = turn.request.text.split("\n")
    added = "\n".join(line for line in turn.rewritten.text.split("\n") if line not in asked)
    return (*_looked(turn.verdict), *((f"added to the question: {added}",) if added else ()))


def _looked(verdict: Verdict) -> tuple[str, ...]:
    return (f"the verdict is of {verdict.frame}; the model reads the first",) if verdict.frame else ()
