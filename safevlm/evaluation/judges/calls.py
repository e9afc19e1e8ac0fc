"""From cases to assessments by a model's words: what must be asked, what was said before, and what it amounts to.

Every call is on disk before the next is counted, so that a judging that is stopped loses nothing. The trap is a call
without a verdict: unparsed, refused and failed are labels of their own, and none has a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from safevlm.evaluation.endpoint import CallOutcome, call_all
from safevlm.evaluation.judges import cache
from safevlm.evaluation.judges.base import (
    FAILED,
    JUDGE_REFUSED,
    UNPARSED,
    Assessment,
    Call,
    Case,
    Judge,
    defused,
    unparsed,
)
from safevlm.evaluation.judges.client import JudgeClient
from safevlm.evaluation.judges.cost import estimate
from safevlm.evaluation.judges.options import Prices
from safevlm.evaluation.judges.verdicts import is_echo
from safevlm.evaluation.runs import earlier
from safevlm.refusals import is_refusal

NOT_ASKED = CallOutcome("failed", "not asked: too many calls in a row had failed")


@dataclass(frozen=True)
class JudgeCall:
    """One call to make: a question of a case, for one vote."""

    key: str
    call: Call
    vote: int


@dataclass(frozen=True)
class CallPlan:
    """Everything that a judging has to ask."""

    judge: Judge
    cases: Sequence[Case]
    calls: Mapping[str, Sequence[Sequence[JudgeCall]]]
    """By id of the case: votes, and the calls of each vote."""

    @property
    def jobs(self) -> dict[str, JudgeCall]:
        """All calls by key; the same content is asked once."""
        return {job.key: job for votes in self.calls.values() for vote in votes for job in vote}


@dataclass(frozen=True)
class JudgeAnswers:
    """What a judging got."""

    assessments: Mapping[str, Assessment]
    """By id of the case."""
    asked: int
    cached: int
    tokens_in: int
    tokens_out: int
    served_as: tuple[str, ...]


def plan_calls(judge: Judge, cases: Sequence[Case], client: JudgeClient, prompt: str, prompt_digest: str) -> CallPlan:
    """The calls of every case, each under the key of its content."""
    assert judge.calls is not None  # only judges with a model come here
    votes = 1 if client.is_repeatable else judge.votes
    content = {"model": client.model, "prompt": prompt_digest, "decoding": earlier.hashed(client.decoding)}
    digests: dict[Path, str] = {}
    plan: dict[str, list[list[JudgeCall]]] = {}
    for case in cases:
        calls = judge.calls(case, prompt)
        for image in {image for call in calls for turn in call for image in turn.images} - digests.keys():
            digests[image] = cache.digest(image)
        plan[case.id] = [
            [JudgeCall(cache.key_of(call, {**content, "vote": vote}, digests), call, vote) for call in calls]
            for vote in range(votes)
        ]
    return CallPlan(judge, cases, plan)


def ask(plan: CallPlan, client: JudgeClient, path: Path, prices: Prices, tell: Callable[[str], None]) -> JudgeAnswers:
    """Asks what the cache at `path` does not hold, and reads all of it; `tell` gets the estimate first."""
    known, jobs = cache.read(path), plan.jobs
    waiting = [job for key, job in jobs.items() if key not in known]
    tell(estimate([job.call for job in waiting], len(jobs) - len(waiting), plan.judge.max_tokens, client, prices))
    answered = _ask_all(waiting, client, path)
    outcomes = {**known, **answered}
    assessments = {
        case.id: settled(
            plan.judge, case, [[outcomes.get(job.key, NOT_ASKED) for job in vote] for vote in plan.calls[case.id]]
        )
        for case in plan.cases
    }
    return JudgeAnswers(
        assessments,
        asked=len(answered),
        cached=len(jobs) - len(waiting),
        tokens_in=sum(outcome.tokens_in for outcome in answered.values()),
        tokens_out=sum(outcome.tokens_out for outcome in answered.values()),
        served_as=tuple(sorted({outcomes[key].served_as for key in jobs if key in outcomes} - {""})),
    )


def _ask_all(jobs: Sequence[JudgeCall], client: JudgeClient, path: Path) -> dict[str, CallOutcome]:
    answered: dict[str, CallOutcome] = {}
    kinds: Counter[str] = Counter()
    with tqdm(total=len(jobs), desc="judge", unit="call", disable=not jobs) as bar:
        for job, outcome in call_all(jobs, lambda job: client.say(job.call, job.vote), client.concurrency):
            cache.keep(path, job.key, outcome)
            answered[job.key] = outcome
            kinds[outcome.kind] += 1
            bar.set_postfix(kinds)
            bar.update()
    return answered


def settled(judge: Judge, case: Case, votes: Sequence[Sequence[CallOutcome]]) -> Assessment:
    """What the outcomes of all calls amount to, vote by vote."""
    return majority([_vote(judge, case, outcomes) for outcomes in votes])


def _vote(judge: Judge, case: Case, outcomes: Sequence[CallOutcome]) -> Assessment:
    for kind, label in (("failed", FAILED), ("refused", JUDGE_REFUSED)):
        reasons = [outcome.text for outcome in outcomes if outcome.kind == kind]
        if reasons:
            return Assessment(None, label, reasons[0])
    assert judge.read is not None  # it comes with `calls`
    said = [outcome.text for outcome in outcomes]
    if any(is_echo(text, shown) for text in said for shown in (case.answer, defused(case.answer))):
        return unparsed(said)
    if any(outcome.is_cut for outcome in outcomes) and not judge.may_be_cut:
        return unparsed(said)
    assessment = judge.read(case, said)
    if assessment.label == UNPARSED and any(is_refusal(text) for text in said):
        return Assessment(None, JUDGE_REFUSED, assessment.raw)
    return assessment


def majority(votes: Sequence[Assessment]) -> Assessment:
    """What more than half of all votes say; votes without a verdict are votes for nothing."""
    if len(votes) == 1:
        return votes[0]
    raw = "\n===\n".join(vote.raw for vote in votes)
    scored = Counter((vote.value, vote.label) for vote in votes if vote.value is not None)
    for (value, label), count in scored.most_common(1):
        if count > len(votes) / 2:
            return Assessment(value, label, raw)
    lost = [vote.label for vote in votes if vote.value is None]
    return Assessment(None, FAILED if FAILED in lost else lost[0] if lost else UNPARSED, raw)
