"""A suffix of the question, searched token by token (GCG: Zou et al., arXiv 2307.15043, §2.3), against the model.

Detectors that look at images cannot be moved by words. What a suffix attacks is the model behind them, in the words in
which the guard asks it: hint, history and virtual tokens stay as they are, and the loss is that of the answer which the
unguarded model gives. A request that is refused in the model's place has nothing to win. Candidates are judged as text,
rendered and tokenized again, since ids that no text gives could not be sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from safevlm.engine.encoder import Encoder
from safevlm.engine.guard import GuardedRequest
from safevlm.evaluation.attacks.job import AttackJob
from safevlm.evaluation.attacks.wanted import Wanted, answer_losses
from safevlm.evaluation.attacks.white_box import frozen
from safevlm.types import Reply, Request, Sample, Verdict

TRIED = 16
"""Suffixes that are tried at once."""
CHOSEN_FROM = 64
"""Tokens of which a place takes one: those that the gradient likes best."""


class SuffixTarget:
    """One request behind a guard, whose question may end in anything."""

    def __init__(self, engine: Any, request: Request, answer: str) -> None:
        self.engine, self.request, self.answer = engine, request, answer
        self.encoder = Encoder(engine.loaded, engine.device)
        self.features = self.encoder.features([request])[0]
        self.verdict: Verdict = engine.look(request)

    def with_suffix(self, suffix: str) -> Request:
        return replace(self.request, text=f"{self.request.text} {suffix}".rstrip())

    def asked(self, suffix: str) -> Wanted | None:
        """None: the guard answers in the model's place."""
        rewritten = self.engine.defense.rewrite(self.with_suffix(suffix), self.verdict)
        if isinstance(rewritten, Reply):
            return None
        return Wanted.of(self.encoder, rewritten, self.features, self.answer)

    def turn(self, asked: Wanted) -> GuardedRequest:
        return asked.turn(self.engine, self.encoder, self.features, self.verdict)

    def losses(self, suffixes: Sequence[Wanted]) -> tuple[Tensor, Tensor]:
        """(s,) each: loss of the answer, and whether greedy decoding says it."""
        turns, tokens = [self.turn(one) for one in suffixes], [one.tokens for one in suffixes]
        return answer_losses(self.engine, self.encoder, turns, tokens)

    @cached_property
    def bare(self) -> Wanted | None:
        """The question as it is."""
        return self.asked("")

    def liked(self, suffix: str, words: Tensor) -> Tensor | None:
        """(places, words): how much the gradient likes each word at each token of the suffix; None: it has no place."""
        full = self.asked(suffix)
        if self.bare is None or full is None:
            return None
        place = _difference(self.bare.ids, full.ids)
        table: Any = self.engine.model.get_input_embeddings()
        with torch.enable_grad(), _embedded(table) as vectors:
            self.losses([full])[0].sum().backward()
        gradient = vectors[0].grad
        assert gradient is not None
        before = (tokens for tokens in self.turn(full).inputs.virtual if tokens.at <= place.start)
        virtual = sum(len(tokens.vectors) for tokens in before)
        own = gradient[0][place.start + virtual : place.stop + virtual]
        return -own.float() @ table.weight[words].float().T


def search(target: SuffixTarget, words: Sequence[int], tokens: int, queries: int, chance: random.Random) -> str:
    """The suffix of so many words, as they are at first, that makes the answer likeliest; none where none is heard."""
    tokenizer = target.engine.processor.tokenizer
    texts = [tokenizer.decode([word]).strip() for word in words]
    found = [chance.choice(texts) for _ in range(tokens)]
    first = target.asked(" ".join(found))
    if first is None or not target.answer:
        return ""
    with torch.no_grad():
        best, exact = (float(each[0]) for each in target.losses([first]))
    ids = torch.tensor(list(words), device=target.engine.device)
    for _ in range(queries // TRIED):
        if exact:
            break
        tried = _changed(found, target.liked(" ".join(found), ids), texts, chance)
        asked = [(each, one) for each in tried if (one := target.asked(" ".join(each))) is not None]
        with torch.no_grad():
            losses, exacts = target.losses([one for _, one in asked])
        at = int(losses.argmin())
        if float(losses[at]) < best:
            found, best, exact = asked[at][0], float(losses[at]), float(exacts[at])
    return " ".join(found)


def _changed(
    found: Sequence[str], liked: Tensor | None, texts: Sequence[str], chance: random.Random
) -> list[list[str]]:
    """Suffixes with one word exchanged: for one of those that the gradient likes best there, or for any."""
    tried = []
    for _ in range(TRIED):
        place = chance.randrange(len(found))
        chosen: Sequence[int] = range(len(texts))
        if liked is not None and len(liked):
            row = liked[min(place, len(liked) - 1)]
            chosen = row.topk(min(CHOSEN_FROM, len(texts))).indices.tolist()
        tried.append([*found[:place], texts[chance.choice(chosen)], *found[place + 1 :]])
    return tried


def suffixes(job: AttackJob) -> list[Sample]:
    """The job's samples, each with the suffix that was found for it."""
    engine = frozen(job.engine)
    words = _words(engine.processor.tokenizer)
    made = []
    for sample in tqdm(job.samples, desc="suffix", unit="request"):
        target = SuffixTarget(engine, sample.request, job.answers.get(sample.request.id, ""))
        suffix = search(target, words, round(job.strength), job.effort.queries, job.chance(sample))
        made.append(replace(sample, request=target.with_suffix(suffix)))
    return made


def _words(tokenizer: Any) -> list[int]:
    """Ids of words that a person could type, and that are read back as they were."""
    special = set(tokenizer.all_special_ids)
    found = []
    for id in range(len(tokenizer)):
        text = tokenizer.decode([id]).strip()
        if id in special or not text.isascii() or not text.isalpha():
            continue
        found.append(id)
    return found


def _difference(bare: Tensor, full: Tensor) -> range:
    """Where `full` has what `bare` lacks."""
    start = next((at for at in range(len(bare)) if bare[at] != full[at]), len(bare))
    return range(start, start + len(full) - len(bare))


@contextmanager
def _embedded(table: Any) -> Iterator[list[Tensor]]:
    """The vectors that the table gives meanwhile, with their gradients."""
    given: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.detach().requires_grad_()
        output.retain_grad()
        given.append(output)
        return output * 1

    handle = table.register_forward_hook(keep)
    try:
        yield given
    finally:
        handle.remove()
