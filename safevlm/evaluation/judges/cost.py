"""An estimate of what a judging is going to cost, printed before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.evaluation.judges.base import Call
from safevlm.evaluation.judges.client import JudgeClient
from safevlm.evaluation.judges.options import Prices

CHARACTERS_PER_TOKEN = 4  # English prose; a rule of thumb
TOKENS_PER_IMAGE = 765  # an image of 1024 x 1024 at high detail, as the largest provider counts it
SECONDS_PER_CALL = 2.0  # assumed before the first call; the progress bar shows the real pace
MILLION = 1_000_000


def tokens_of(calls: Sequence[Call]) -> int:
    """About how many tokens the calls send."""
    turns = [turn for call in calls for turn in call]
    characters = sum(len(turn.text) for turn in turns)
    return characters // CHARACTERS_PER_TOKEN + TOKENS_PER_IMAGE * sum(len(turn.images) for turn in turns)


def cost(tokens_in: int, tokens_out: int, prices: Prices) -> float | None:
    if prices.tokens_in is None and prices.tokens_out is None:
        return None
    return (tokens_in * (prices.tokens_in or 0) + tokens_out * (prices.tokens_out or 0)) / MILLION


def estimate(calls: Sequence[Call], cached: int, max_tokens: int, client: JudgeClient, prices: Prices) -> str:
    """One line for the user, before the first call."""
    tokens_in, tokens_out = tokens_of(calls), len(calls) * max_tokens
    minutes = len(calls) * SECONDS_PER_CALL / client.concurrency / 60
    price = cost(tokens_in, tokens_out, prices)
    return (
        f"{len(calls)} calls to {client.model} ({cached} known from before), about {tokens_in} tokens in, at most "
        f"{tokens_out} out{'' if price is None else f', at most about {price:.2f} in money'}; "
        f"{minutes:.1f} minutes at {SECONDS_PER_CALL:.0f} s a call, {client.concurrency} at once"
    )
