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

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from safevlm.defenses.policy import Action
from safevlm.evaluation.speed import plain
from safevlm.evaluation.speed.gpu_check import models, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.evaluation.speed.plain import PLAIN, Ask
from safevlm.model.loading import Loaded
from safevlm.types import Request

DEFENSES: Mapping[str, tuple[str, Action]] = {
    "none": ("none", "allow"),
    "safety-head": ("safety-head", "allow"),
    "safe-clip": ("safe-clip", "allow"),
    "refused": ("safety-head", "refuse"),
}
"""Ways beside `plain`: the defense, and what its policy does at every level."""


def answers(session: Session, *, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds until the first token and until the whole answer, of every way, and their ratios to `plain`."""
    loaded = session.once("answering", lambda: models.answering(session))
    asked = session.once("ways", lambda: ways(loaded, models.plain(loaded, session), DEFENSES, session))
    return compared(session, loaded, asked, batch=batch, tokens=tokens, rounds=rounds)


def compared(
    session: Session, loaded: Loaded, ways: Mapping[str, Ask], *, batch: int, tokens: int, rounds: int
) -> dict[str, Any]:
    """The same of any model and its ways."""
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
        "prompt_tokens": plain.inputs_of(loaded.processor, requests[:1])["input_ids"].shape[1],
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


def ways(loaded: Loaded, stock: Any, defenses: Mapping[str, tuple[str, Action]], session: Session) -> dict[str, Ask]:
    """`plain`, which asks `stock`, transformers' model around the same weights; and the ways of `defenses`."""
    bare = plain.asking(stock, loaded.processor, session.device, is_whole=True)
    engines = {name: models.engine(loaded, defense, session, action) for name, (defense, action) in defenses.items()}
    return {PLAIN: bare} | {
        name: plain.asking_engine(engine, refuses=name == "refused") for name, engine in engines.items()
    }


def _asking(ask: Ask, requests: Sequence[Request], tokens: int) -> Callable[[], object]:
    return lambda: ask(requests, tokens)
