"""Calls a defense's hooks for one request. Whatever breaks in a hook refuses that request: it fails closed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

from safevlm.data import chat
from safevlm.defenses import Defense, Inputs, prompts
from safevlm.defenses.verdicts import by_level, gravest, look
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
    prompt: str = ""
    """Its words as the model reads them, with one `<image>` per image."""

    @property
    def acted_on(self) -> Verdict:
        """The verdict as hooks get it."""
        return _acted_on(self.verdict)

    @property
    def trace(self) -> tuple[str, ...]:
        """What was done so far, one line for each step that changed something."""
        asked = self.request.text.split("\n")
        added = "\n".join(line for line in self.rewritten.text.split("\n") if line not in asked)
        return (*_looked(self.verdict), *((f"added to the question: {added}",) if added else ()))


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
        first = look(self.defense, request, features)
        if not features.frames:
            return first
        try:
            return self._gravest(request, first, features.frames)
        except Exception as error:  # noqa: BLE001 - verdicts that cannot be compared: the same, fail closed
            return self._broken("detect", first, error)

    def _gravest(self, request: Request, first: Verdict, frames: Sequence[Frame]) -> Verdict:
        told = f"{len(frames)} more frames of its images were looked at"
        verdicts = [dataclasses.replace(first, frame=f"the first frames; {told}")]
        for frame in frames:
            found = look(self.defense, request, frame.features, f"{frame.name}: ")
            verdicts.append(dataclasses.replace(found, frame=frame.name))
        order = partial(self.defense.strictness, request), by_level(self.level_names)
        images = [[own] for own in first.images]
        for frame, verdict in zip(frames, verdicts[1:], strict=True):
            if images:
                images[frame.image].append(verdict)
        return dataclasses.replace(gravest(verdicts, *order), images=tuple(gravest(own, *order) for own in images))

    def transform(
        self,
        decided: Decision,
        features: LazyImageFeatures,
        prompt: chat.Prompt | Exception,
        encode: Callable[[chat.Prompt, LazyImageFeatures], Inputs],
        check: Callable[[Inputs, Inputs], Inputs],
    ) -> GuardedRequest | Reply:
        """The last hook before generation: the request with its tensors, or the reply given in the model's place.

        `prompt`: of the words in which the model is to be asked, or why there is none; `encode` makes its tensors.
        `check(after, before)`: what the hook made of them; it raises where the model could not read them.
        """
        request, verdict = decided.request, decided.verdict
        if verdict.error and not verdict.looked:
            read = readable(prompt)
            return GuardedRequest(request, verdict, request, features, encode(read, features), read.text)
        hook = "rewrite"
        try:
            read = readable(prompt)
            before = encode(read, features)
            hook = "transform"
            inputs = given(Inputs, self.defense.transform(before, _acted_on(verdict)))
            if inputs is not before:
                check(inputs, before)
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return self._refusal(request, self._broken(hook, verdict, error))
        return GuardedRequest(request, verdict, decided.rewritten, features, inputs, read.text)

    def decide(self, request: Request, features: LazyImageFeatures) -> Decision | Reply:
        """What becomes of a request, before any tensor of its prompt is made; a Reply in the model's place."""
        verdict = self.detect(request, features)
        if verdict.error and self.on_error != "allow":
            return self._refusal(request, verdict)
        if verdict.error and not verdict.looked:
            return Decision(request, verdict, request)
        acted_on = _acted_on(verdict)
        try:
            rewritten = self.defense.rewrite(request, acted_on)
            if isinstance(rewritten, Reply):
                asked = Reply(text="", request=request, verdict=verdict, trace=_looked(verdict))
                reply = settled(rewritten, asked)
                own = verdict if reply.verdict == acted_on else reply.verdict
                return dataclasses.replace(reply, verdict=own, refused_by=reply.refused_by or self.defense.name)
            return Decision(request, verdict, check_rewritten(request, given(Request, rewritten)))
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return self._refusal(request, self._broken("rewrite", verdict, error))

    def review(self, turn: GuardedRequest, written: Reply) -> Reply:
        """The reply, once the model has `written` its own."""
        try:
            return settled(given(Reply, self.defense.review(turn.request, written, turn.acted_on)), written)
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return settled(self._refusal(turn.request, self._broken("review", turn.verdict, error)), written)

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


def readable(prompt: chat.Prompt | Exception) -> chat.Prompt:
    """The prompt; its error, if it has one, is raised."""
    if isinstance(prompt, Exception):
        raise prompt
    return prompt


def given(kind: type[Result], value: object) -> Result:
    """`value`, if it is of this type; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"gave {value!r}, not a {kind.__name__}")
    return value


def _acted_on(verdict: Verdict) -> Verdict:
    """Where one detector failed and another one saw something, that is acted on like any verdict."""
    return dataclasses.replace(verdict, error="") if verdict.error and verdict.looked else verdict


def _looked(verdict: Verdict) -> tuple[str, ...]:
    told = f"the defense failed ({verdict.error}) and the caller chose to go on"
    if verdict.error and not verdict.looked:
        return (f"unguarded: {told}",)
    failed = (f"guarded in part: {told} with what was seen",) if verdict.error else ()
    return (*failed, *_frame(verdict), *_view(verdict))


def _frame(verdict: Verdict) -> tuple[str, ...]:
    return (f"the verdict is of {verdict.frame}; the model reads the first",) if verdict.frame else ()


def _view(verdict: Verdict) -> tuple[str, ...]:
    view = (f"the verdict is of {verdict.view}",) if verdict.view else ()
    return view if verdict.radius is None else (*view, f"certified against changes of l2 norm {verdict.radius:.3f}")
