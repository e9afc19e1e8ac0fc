"""What the page says beside the model's words, as "thought" bubbles: what the guard saw and did, what went wrong.

A bubble's title is HTML of the page's own, with a colour for those who see it; the words say the same.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from safevlm.serve.console.account import probability_lines, verdict_line, why
from safevlm.serve.output_guard import JudgedReply
from safevlm.serve.page import paths
from safevlm.taxonomy import CLEAN
from safevlm.types import Reply, Verdict

Bubble = dict[str, Any]

FINE, MIND, STOP, BLIND, BARE = "fine", "mind", "stop", "blind", "bare"
"""Colours: nothing seen, something seen, nothing let through, not looked at, not guarded."""

FAILED = "The guard failed, so nothing is known; the cause is in the server's log."


def looking() -> Bubble:
    return _bubble(_title(BLIND, "The guard is looking …"), is_done=False)


def passed() -> Bubble:
    """While the answer grows; what was seen is told with its end."""
    return _bubble(_title(BLIND, "The guard lets the model answer …"), is_done=False)


def told(reply: Reply, image: str = "", images: int = 1) -> Bubble:
    """The verdict on a request and what was done about it, with all that is known of it inside. `image`: the file of
    the only one. `images`: of all turns."""
    lines = [FAILED] if reply.verdict.error else why(reply)  # an exception may hold anything; it stays in the log
    colour = STOP if reply.refused_by else _colour(reply.verdict)
    about = f"All {images} images" if images > 1 else "Guard"
    return _bubble(_title(colour, f"{about}: {seen(reply.verdict)}", done(reply), image), lines)


def of_image(number: int | None, image: str, verdict: Verdict) -> Bubble:
    """The verdict on one image alone. `number`: among those of the question; None: there is no other."""
    name = f"Image {number}" if number is not None else "This image"
    lines = [FAILED] if verdict.error else (verdict_line(verdict), *probability_lines(verdict))
    return _bubble(_title(_colour(verdict), f"{name}: {seen(verdict)}", image=image), lines)


def trouble(message: str) -> Bubble:
    """What went wrong, in one line."""
    return _bubble(_title(STOP, f"Not answered: {' '.join(message.split())}"), ["Nothing was let through."])


def bare_begins() -> Bubble:
    return _bubble(_title(BLIND, "The bare model, without a guard …"), is_done=False)


def bare(words: str) -> Bubble:
    """What the model says when nobody guards it; open, so that it can be read beside the other answer."""
    return _bubble(_title(BARE, "The bare model, without a guard"), words.splitlines(), is_done=None)


def seen(verdict: Verdict) -> str:
    """Level and category in words, with their probabilities where there are any."""
    if verdict.error:
        return "no verdict, it failed"
    if not verdict.looked:
        return "did not look"
    level = _likely(verdict.level, verdict.level_probabilities.get(verdict.level))
    if verdict.category == CLEAN:
        return level
    return f"{level}, {_likely(verdict.category, verdict.category_probabilities.get(verdict.category))}"


def done(reply: Reply) -> str:
    if isinstance(reply, JudgedReply) and reply.refused_by:
        return "answer withheld"
    if reply.refused_by:
        return "refused"
    if any(line.startswith("added to the question") for line in reply.trace):
        return "answered with a hint"
    return "answered"


def _colour(verdict: Verdict) -> str:
    if verdict.error:
        return STOP
    if not verdict.looked:
        return BLIND
    return FINE if verdict.is_clean else MIND


def _likely(name: str, probability: float | None) -> str:
    words = name.replace("_", " ")
    return words if probability is None else f"{words} ({probability:.0%})"


def _title(colour: str, words: str, what: str = "", image: str = "") -> str:
    shown = f'<img src="{paths.FILE}{quote(image)}" alt="">' if image else ""
    end = f' <b class="guard-done">{html.escape(what)}</b>' if what else ""
    return f'<div class="guard guard-{colour}">{shown}<span>{html.escape(words)}</span>{end}</div>'


def _bubble(title: str, lines: Sequence[str] = (), *, is_done: bool | None = True) -> Bubble:
    """`is_done` None: it stays open."""
    status = {True: {"status": "done"}, False: {"status": "pending"}, None: {}}[is_done]
    content = html.escape("\n".join(lines), quote=False)
    return {"role": "assistant", "content": content, "metadata": {"title": title, **status}}
