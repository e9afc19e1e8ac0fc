"""A model behind an OpenAI-compatible server as the one that is asked: `--model http://127.0.0.1:8000/v1#NAME`.

It stands where the engine stands in `ask` and answers the same call. Its weights are elsewhere, so that only a defense
of words can be put in front of it. The trap is a call that fails: it gives a `Failure`, never an empty answer, which a
judge could take for a harmless one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from safevlm.defenses.base import Defense
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.policy import Policy
from safevlm.defenses.table import AUTO, OURS, build, members
from safevlm.evaluation import endpoint
from safevlm.evaluation.endpoint import CallOutcome, Endpoint, EndpointError, Turn
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Reply, Request, Verdict
from safevlm.usage import UsageError

SCHEMES = ("http://", "https://")
TIMEOUT = 300.0  # seconds for one answer; a long one of a large model on a busy server takes minutes
NOT_LOOKED = Verdict.not_looked("none")
NOT_ASKED = CallOutcome("failed", "not asked: too many calls before it failed in a row")


@dataclass(frozen=True)
class Failure:
    """A request without an answer."""

    request: Request
    kind: str
    """`failed`; `refused`: the provider's filter withheld an answer; `unusable`: its image or words cannot be used."""
    error: str


@dataclass(frozen=True)
class Served:
    """A client that answers as `Engine.reply_all` does."""

    client: Any
    server: Endpoint
    guard: Defense
    """Rewrites requests; the server sees nothing else of it."""
    models: tuple[str, ...]
    """What the server said it serves; empty when it did not say."""

    def facts(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "dtype": "served",
            "server": {
                "base_url": self.server.base_url,
                "model": self.server.model,
                "serves": list(self.models),
                "images": f"JPEG {endpoint.JPEG_QUALITY}, at most {endpoint.IMAGE_SIDE} pixels a side",
            },
        }

    def read_ahead(self, requests: Sequence[Request]) -> None:
        """Nothing: images are read call by call, many at once."""

    def reply_all(
        self, requests: Sequence[Request], generation: Generation | None = None, *, batch_size: int = 8
    ) -> list[Reply | Failure]:
        """One reply or failure per request, in order; at most `batch_size` are under way. Greedy at temperature 0."""
        generation = generation or Generation()
        decoding = endpoint.greedy(self.server.model, generation.max_new_tokens)
        if generation.temperature and "temperature" in decoding:
            decoding |= {"temperature": generation.temperature, "top_p": generation.top_p, "seed": generation.seed}
        asked = Endpoint(self.server.model, self.server.base_url, self.server.timeout, decoding=decoding)
        sent = [self.guard.rewrite(request, NOT_LOOKED) for request in requests]
        to_ask = {index: words for index, words in enumerate(sent) if isinstance(words, Request)}
        seconds: dict[int, float] = {}

        def call(index: int) -> CallOutcome:
            started = time.perf_counter()
            outcome = endpoint.say(self.client, asked, turns(to_ask[index]))
            seconds[index] = time.perf_counter() - started
            return outcome

        outcomes = dict(endpoint.call_all(list(to_ask), call, concurrency=batch_size))
        return [
            words
            if isinstance(words, Reply)
            else _answer(request, words, outcomes.get(index, NOT_ASKED), seconds.get(index, 0.0))
            for index, (request, words) in enumerate(zip(requests, sent, strict=True))
        ]


def is_address(model: str) -> bool:
    return model.startswith(SCHEMES)


def check_alone(model: str, processes: int) -> None:
    """ValueError when several processes would ask one server."""
    if is_address(model) and processes > 1:
        raise UsageError(
            f"--model {model}: {processes} processes; a served model is asked by one, with --batch-size requests at "
            "once. Start it without torchrun and --shard"
        )


def connect(model: str, defense: str, *, policy: str | Path | None = None) -> Served:
    """A client for `http://HOST/v1#NAME`. ValueError: no name, an unknown one, or a defense that needs the weights."""
    base_url, name = urldefrag(model)
    if not name:
        raise UsageError(f"--model {model}: name the model after a #, as in {base_url}#NAME")
    guard = _guard(defense)
    if policy is not None:
        raise UsageError(f"--policy {policy}: a served model is asked without a detector, so no policy can act")
    server = Endpoint(name, base_url, TIMEOUT)
    client = endpoint.connect(server)
    models = _models(client)
    if models and name not in models:
        raise EndpointError(f"--model {model}: the server has no model {name!r}; one of {list(models)}")
    return Served(client, server, guard, models)


def _guard(name: str) -> Defense:
    """The defense of a name, without a model. ValueError when one of its members needs the weights."""
    needy = [member.row.name for member in members(name) if not member.row.works_on_served_model]
    if needy or name == AUTO:
        usable = [row.name for row in OURS if row.works_on_served_model]
        raise UsageError(
            f"--defense {name}: {', '.join(needy) or AUTO} needs the model's weights, which a server keeps to itself; "
            f"one of {usable}, or serve the guarded model"
        )
    return build(name, DefenseContext(Policy(DEFAULT)))


def turns(request: Request) -> list[Turn]:
    """A request as messages, each question with its own images, as in `safevlm.data.chat`."""
    said = [Turn("system", request.system)] if request.system else []
    images = iter(tuple(Path(str(image)) for image in request.images))
    *earlier, last = [Turn("user", text, tuple(islice(images, count))) for text, count in request.turns]
    for question, (_, answer) in zip(earlier, request.history, strict=True):
        said += [question, Turn("assistant", answer)]
    return [*said, last]


def told(failed: Sequence[Mapping[str, Any]]) -> str:
    """Failures for people: how many of each kind, and the first of them."""
    kinds = Counter(str(row["kind"]) for row in failed)
    return f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())} (first: {failed[0]['error']})"


def _answer(request: Request, sent: Request, outcome: CallOutcome, seconds: float) -> Reply | Failure:
    if outcome.kind != "said":
        return Failure(request, outcome.kind, outcome.text)
    added = sent.text.removesuffix(request.text).strip()
    return Reply(
        text=outcome.text.strip(),
        request=request,
        verdict=NOT_LOOKED,
        prompt=sent.text,
        seconds=seconds,
        trace=(f"added to the question: {added}",) if added else (),
    )


def _models(client: Any) -> tuple[str, ...]:
    """Names that the server lists; not every server has a list."""
    from openai import OpenAIError

    try:
        return tuple(model.id for model in client.models.list())
    except (OpenAIError, ValueError, TypeError, AttributeError):
        return ()
