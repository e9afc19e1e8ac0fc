"""Turn `replies.jsonl` into `scores.jsonl`, without the model that was asked; `judge.json` says who judged and how.

A judge may have a model of its own, behind an endpoint or in a folder. What it says is kept call by call, so that
judging may be stopped and started; `scores.jsonl` is written as a whole at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from safevlm.evaluation.endpoint import Endpoint
from safevlm.evaluation.judges import JUDGES, cache, judge_of, record
from safevlm.evaluation.judges.base import FAILED, UNSUITED, Assessment, Case, Judge
from safevlm.evaluation.judges.calls import JudgeAnswers, ask, plan_calls, settled
from safevlm.evaluation.judges.client import JudgeClient, local, served
from safevlm.evaluation.judges.options import JudgeOptions
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.files import SCORES, Row, Score, read_replies, write_json, write_rows
from safevlm.evaluation.runs.suite_file import suite_of_run
from safevlm.evaluation.suites import Suite
from safevlm.plugins import is_reference
from safevlm.refusals import is_empty
from safevlm.usage import UsageError

ANSWER_PLACES = ("{answer}", "{generation}", "{first}")


def judge(
    out: str | Path,
    name: str = "",
    options: JudgeOptions | None = None,
    *,
    into: str | Path | None = None,
    command: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> list[Score]:
    """Score every reply of a run; `scores.jsonl` and `judge.json` are replaced as a whole.

    name: a judge by name or `package.module:NAME`; empty: that of the run's suite. into: another folder for the
    results. command: for the record. tell: receives the estimate of the costs, before the first call.
    """
    options = options or JudgeOptions()
    folder, results = Path(out), Path(into or out)
    if name:
        _configured(name, options)  # flags first, then what lies in the folder
    started = run_file.now()
    rows = read_replies(folder)
    suite = suite_of_run(folder, rows)
    judge = _configured(name or _default(suite), options)
    cases = [case_of(row, folder, suite) for row in rows]
    prompt, digest = _prompt(judge, options)
    client = _client(judge, options) if judge.needs_model else None
    assessed = {case.id: found for case in cases if (found := _without_asking(judge, case)) is not None}
    answers: JudgeAnswers | None = None
    if client is not None:
        waiting = [case for case in cases if case.id not in assessed]
        plan = plan_calls(judge, waiting, client, prompt, digest)
        answers = ask(plan, client, results / cache.FILE, options.prices, tell)
        assessed |= answers.assessments
    full_name = f"{judge.name}@{client.model}" if client else judge.name
    scores = [_score(case, assessed[case.id], full_name) for case in cases]
    write_rows(results / SCORES, [asdict(score) for score in scores])
    facts = record.JudgeFacts(judge, client, answers, digest, str(options.prompt or ""), options.prices)
    times = {"started": started, "finished": run_file.now(), "command": command}
    write_json(results / record.FILE, record.table(facts, scores, results / SCORES) | times)
    return scores


def one_by_one(name: str, options: JudgeOptions) -> tuple[Judge, Callable[[Case], Assessment]]:
    """A judge, and a way to ask it about one case at a time; nothing is kept, and calls are made one after another.

    UsageError, ValueError: no such judge, or options that it does not take. What is asked then may raise EndpointError.
    """
    judge = _configured(name, options)
    prompt, _ = _prompt(judge, options)
    client = _client(judge, options) if judge.needs_model else None

    def assess(case: Case) -> Assessment:
        found = _without_asking(judge, case)
        if found is not None or client is None or judge.calls is None:
            return found if found is not None else Assessment(None, UNSUITED)
        calls = judge.calls(case, prompt)
        votes = 1 if client.is_repeatable else judge.votes
        return settled(judge, case, [[client.say(call, vote) for call in calls] for vote in range(votes)])

    return judge, assess


def case_of(row: Row, folder: Path, suite: Suite) -> Case:
    """A row of `replies.jsonl` as a judge sees it; images lie where they do from the run's folder."""
    return Case(
        id=row["id"],
        group=row["group"],
        side=suite.side_of(row["group"]),
        question=str(row["truth"].get("question") or row["request"]["text"]),
        answer=row["reply"],
        images=tuple(folder / image for image in row["request"]["images"]),
        truth=row["truth"],
    )


def _default(suite: Suite) -> str:
    """The suite's judge. A folder of replies may be anybody's, so the code that it names does not run by itself."""
    if is_reference(suite.judge):
        raise ValueError(f"the judge of suite {suite.name!r} is code outside safevlm; name it: --judge {suite.judge}")
    return suite.judge


def _configured(name: str, options: JudgeOptions) -> Judge:
    """The judge with its own options. ValueError: an option of another judge's."""
    judge = judge_of(name)
    for option in sorted({each for one in JUDGES.ours.values() for each in one.options} - set(judge.options)):
        if getattr(options, option) != getattr(JudgeOptions(), option):
            owners = [one.name for one in JUDGES.ours.values() if option in one.options]
            raise UsageError(f"--{option}: the judge {name!r} does not take it; give --judge {' or '.join(owners)}")
    judge = judge.configure(judge, options) if judge.configure else judge
    given = {"--judge-model": options.model, "--judge-local": options.local, "--judge-prompt": options.prompt}
    useless = [flag for flag, value in given.items() if value and not judge.needs_model]
    if useless:
        raise ValueError(f"{useless[0]}: the judge {name!r} has no model")
    _check_numbers(options)
    return replace(judge, max_tokens=options.max_tokens or judge.max_tokens)


def _check_numbers(options: JudgeOptions) -> None:
    least = {
        "--judge-max-tokens": (1 if options.max_tokens is None else options.max_tokens, 1),
        "--concurrency": (options.concurrency, 1),
        "--max-retries": (options.max_retries, 0),
        "--timeout": (options.timeout, 0.001),
        "--price-in": (options.prices.tokens_in or 0, 0),
        "--price-out": (options.prices.tokens_out or 0, 0),
    }
    for flag, (number, smallest) in least.items():
        if not number >= smallest:
            raise ValueError(f"{flag}: {number} is too small; give {smallest} or more")


def _client(judge: Judge, options: JudgeOptions) -> JudgeClient:
    if options.local is not None:
        if options.model or options.base_url:
            raise UsageError("--judge-local: a folder or a server, not both; leave out --judge-model and --base-url")
        return local(judge, Path(options.local), options.device, judge.max_tokens)
    server = Endpoint(options.model, options.base_url, options.timeout, options.max_retries)
    return served(judge, server, options.concurrency, judge.max_tokens)


def _prompt(judge: Judge, options: JudgeOptions) -> tuple[str, str]:
    """The prompt in use and the digest of every text that a verdict depends on."""
    if options.prompt is None:
        if judge.needs_prompt:
            raise UsageError(f"--judge-prompt: this judge is nothing without its own prompt; see {judge.needs_prompt}")
        texts = judge.prompts or ("",)
    else:
        text = Path(options.prompt).read_text(encoding="utf-8")
        if not any(place in text for place in ANSWER_PLACES):
            raise ValueError(f"--judge-prompt {options.prompt}: holds no {ANSWER_PLACES[0]}, the place of the answer")
        texts = (text, *judge.prompts[1:])
    return texts[0], hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()[:16]


def _without_asking(judge: Judge, case: Case) -> Assessment | None:
    """The assessment that needs no model's word: nothing to judge, not for this judge, or a judge of rules."""
    reason = judge.suits(case) if case.side in judge.measures else f"this judge does not score {case.side} rows"
    if reason:
        return Assessment(None, UNSUITED, reason)
    if is_empty(case.answer):
        return judge.empty_is
    return judge.score(case) if judge.score is not None else None


def _score(case: Case, found: Assessment, name: str) -> Score:
    return Score(case.id, case.group, name, found.value, found.label, found.raw)


def is_complete(scores: Sequence[Score]) -> bool:
    """Whether no call failed and something has a value."""
    return any(score.value is not None for score in scores) and all(score.label != FAILED for score in scores)
