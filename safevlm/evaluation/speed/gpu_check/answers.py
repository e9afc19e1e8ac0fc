"""Answers of a model behind a defense beside transformers' own `generate`, in rounds, on the same weights and images.

| way         | what it is                                                                                |
|-------------|-------------------------------------------------------------------------------------------|
| plain       | transformers' processor and `LlavaForConditionalGeneration.generate`                      |
| none        | `Engine` without a defense                                                                |
| safety-head | the head looks; the policy lets everything pass, so what it adds is what looking costs    |
| safe-clip   | the same with a concept bank                                                              |
| refused     | the head looks, and the policy answers in the model's place                               |

Every answer has the same number of tokens, as `plain`'s has. Per token is (answer - first token) over one token less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from safevlm.data import chat
from safevlm.evaluation.speed import plain
from safevlm.evaluation.speed.gpu_check import models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.evaluation.speed.plain import PLAIN, Ask
from safevlm.model.loading import Loaded
from safevlm.types import Request


def answers(session: Session, *, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds until the first token and until the whole answer, of every way, and their ratios to `plain`."""
    loaded = session.once("answering", lambda: models.answering(session))
    ways = session.once("ways", lambda: _ways(loaded, session))
    requests = models.requests(batch)
    said = {name: ask(requests, tokens) for name, ask in ways.items()}
    parts = {
        part: timing.in_rounds(
            {name: _asking(ask, requests, new) for name, ask in ways.items()}, session.device, rounds
        )
        for part, new in (("first_token", 1), ("answer", tokens))
    }
    return {
        "batch": batch,
        "new_tokens": tokens,
        "prompt_tokens": _prompt_length(loaded, requests[0]),
        "rounds": rounds,
        **{part: timing.over(seconds, PLAIN) for part, seconds in parts.items()},
        "seconds_per_token": {
            name: (median(parts["answer"][name]) - median(parts["first_token"][name])) / (tokens - 1)
            for name in ways
            if name != "refused"
        },
        "same_as_plain": {
            name: sum(mine == theirs for mine, theirs in zip(own, said[PLAIN], strict=True)) / batch
            for name, own in said.items()
        },
        "memory": session.memory(),
    }


def _ways(loaded: Loaded, session: Session) -> dict[str, Ask]:
    defended = {
        "none": models.engine(loaded, "none", session, "allow"),
        "safety-head": models.engine(loaded, "safety-head", session, "allow"),
        "safe-clip": models.engine(loaded, "safe-clip", session, "allow"),
        "refused": models.engine(loaded, "safety-head", session, "refuse"),
    }
    bare = plain.asking(models.plain(loaded, session), loaded.processor, session.device, is_whole=True)
    return {PLAIN: bare} | {
        name: plain.asking_engine(made, refuses=name == "refused") for name, made in defended.items()
    }


def _asking(ask: Ask, requests: Sequence[Request], tokens: int) -> Callable[[], object]:
    return lambda: ask(requests, tokens)


def _prompt_length(loaded: Loaded, request: Request) -> int:
    return len(chat.prompt_ids(loaded.processor, request, loaded.safe_llava.slots))
