"""`self-check`: the model is asked whether its own answer is harmful; if so, it answers from a caption instead.

An ECSO-like baseline (arXiv 2403.09572, methods §4) without training: tell (with the image), caption (with image
and question in view), answer (words alone, where the model's own refusals still work). It acts on requests with
images only and costs one more pass per request, or three. The wording is ours and can be replaced:
`self-check=FILE`, a YAML file with the fields of `Wording`.

The trap is the reading of the verdict. "No doubt it is harmful" begins with no, and "not harmful" holds harmful. So a
`no` must stand alone or before a punctuation mark, a `yes` must begin the text, and what is neither counts as harmful
(fail closed): the price of a wrong alarm is an answer that has not seen the image, the price of a missed one is harm.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from safevlm.defenses import prompts
from safevlm.defenses.base import Ask, Defense
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.options import check_number, read_options
from safevlm.defenses.row import DefenseRow
from safevlm.files import check_template
from safevlm.types import Reply, Request, Verdict

Judgement = Literal["harmful", "harmless"]
VERDICT_TOKENS = 16
"""For the verdict itself; it is its first words."""


@dataclass(frozen=True)
class Wording:
    tell: str = prompts.TELL
    """Asks for the verdict; `{question}` and `{reply}`."""
    caption: str = prompts.CAPTION
    """Asks for the caption; `{question}`."""
    answer: str = prompts.ANSWER_FROM_CAPTION
    """Asks again, without the image; `{caption}` and `{question}`."""
    harmful: tuple[str, ...] = ("yes", "harmful", "unsafe")
    """Verdicts that the answer is harmful, by how they begin."""
    harmless: tuple[str, ...] = ("no", "harmless", "not harmful", "safe")
    """The opposite; must stand alone or before a punctuation mark."""
    otherwise: Judgement = "harmful"
    """What a verdict is that says neither."""
    max_new_tokens: int = 256
    """For the caption, and for the answer."""

    def __post_init__(self) -> None:
        for key, needed, allowed in _PLACES:
            try:
                check_template(getattr(self, key), allowed, needed)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        for key in get_args(Judgement):
            if not all(word.strip() for word in getattr(self, key)):
                raise ValueError(f"{key}: {getattr(self, key)!r} is not a list of words")
        if not self.harmful:
            raise ValueError("harmful: no words; nothing could ever be told")
        check_number("max_new_tokens", self.max_new_tokens, 1, 1 << 16, whole=True)

    def read(self, verdict: str) -> Judgement:
        """What the model's verdict says."""
        if _begins(verdict, self.harmful, r"\b"):
            return "harmful"
        return "harmless" if _begins(verdict, self.harmless, r"\s*(?:[.,;:!)*_\"\n]|$)") else self.otherwise


_PLACES: tuple[tuple[str, set[str], set[str]], ...] = (
    ("tell", {"reply"}, {"question", "reply"}),
    ("caption", set(), {"question"}),
    ("answer", {"caption"}, {"caption", "question"}),
)
"""What must and may stand in a template."""


def tell(ask: Ask, wording: Wording, request: Request, replies: Sequence[str]) -> list[str]:
    """The model's own words about each of these replies to a request, as one batch."""
    asked = [wording.tell.format(question=request.text, reply=reply) for reply in replies]
    return ask([dataclasses.replace(request, text=text) for text in asked], max_new_tokens=VERDICT_TOKENS)


class SelfCheck(Defense):
    name = "self-check"

    def __init__(self, wording: Wording) -> None:
        self.wording = wording

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        if verdict.error or not request.images:  # unguarded by the caller's choice; words, which are aligned
            return reply
        said = tell(self.ask, self.wording, request, [reply.text])[0]
        judgement = self.wording.read(said)
        told = f"self-check: its own answer is {judgement} ({said!r})"
        if judgement == "harmless":
            return dataclasses.replace(reply, trace=(*reply.trace, f"{told}; 1 extra pass"))
        caption = self._ask(request, self.wording.caption.format(question=request.text))
        text = self.wording.answer.format(caption=caption, question=request.text)
        answer = self._ask(dataclasses.replace(request, images=(), images_per_turn=()), text)
        note = f"{told}; answered again from the caption {caption!r}; 3 extra passes"
        return dataclasses.replace(reply, text=answer, trace=(*reply.trace, note))

    def _ask(self, request: Request, text: str) -> str:
        asked = dataclasses.replace(request, text=text)
        return self.ask([asked], max_new_tokens=self.wording.max_new_tokens)[0]


def _begins(verdict: str, words: Sequence[str], border: str) -> bool:
    """Whether it begins with one of these, quotes and stars aside, and the border behind it."""
    phrases = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return bool(words) and re.match(rf"\W*(?:{phrases}){border}", verdict, re.IGNORECASE) is not None


def _build(context: DefenseContext) -> Defense:
    return SelfCheck(read_options(Wording, context.file))


ROW = DefenseRow(SelfCheck.name, _build, "the model judges its own answer (ECSO-like)", takes_file=True)
