"""Turn `replies.jsonl` into `scores.jsonl`, without the model that was asked; `judge.json` says who judged and how.

A judge may have a model of its own, behind an endpoint or in a folder. What it says is kept call by call, so that
judging may be stopped and started; `scores.jsonl` is written as a whole at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safevlm.evaluation.endpoint import Endpoint
from safevlm.evaluation.judges import JUDGES, cache, miniature, phrases, record
from safevlm.evaluation.judges.base import FAILED, UNSUITED, Assessment, Case, Judge
from safevlm.evaluation.judges.calls import JudgeAnswers, ask
from safevlm.evaluation.judges.client import JudgeClient, local, served
from safevlm.evaluation.judges.cost import Prices
from safevlm.evaluation.judges.refusals import is_empty
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.files import SCORES, Row, Score, read_replies, write_json, write_rows
from safevlm.evaluation.suites import suite_of
from safevlm.evaluation.suites.groups import MINIATURE, side_of

ANSWER_PLACES = ("{answer}", "{generation}", "{first}")


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked; judges without a model look at `phrases` and `match` only."""

    model: str = ""
    """The judge's model, as its server names it."""
    base_url: str = ""
    """Empty: the environment's OPENAI_BASE_URL."""
    local: str | Path | None = None
    """Folder of the judge's model, instead of a server."""
    prompt: str | Path | None = None
    """File with the prompt, instead of ours."""
    max_tokens: int | None = None
    """Longest reply of the judge; None: the judge's own."""
    concurrency: int = 8
    max_retries: int = 5
    timeout: float = 60.0
    prices: Prices = Prices()
    device: str = "auto"
    phrases: str | Path | None = None
    match: str = "substring"
    truth: str | Path | None = None
    """File with the truth of the miniature in another benchmark's layout, for the judge `miniature`."""


def judge(
    out: str | Path,
    judge_name: str = "",
    asking: JudgeOptions | None = None,
    *,
    into: str | Path | None = None,
    command: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> list[Score]:
    """Score every reply of a run; `scores.jsonl` is replaced as a whole.

    No name: the judge of the run's suite. `into`: another folder for the results.
    """
    asking = asking or JudgeOptions()
    folder, results = Path(out), Path(into or out)
    started = run_file.now()
    rows = read_replies(folder)
    judge_name = judge_name or suite_of(rows[0]["suite"] if rows else MINIATURE).judge
    chosen = _chosen(judge_name, asking)
    cases = [case_of(row, folder) for row in rows]
    prompt, digest = _prompt(chosen, asking)
    speaker = _speaker(chosen, asking) if chosen.needs_model else None
    findings = {case.id: finding for case in cases if (finding := _without_asking(chosen, case)) is not None}
    answers: JudgeAnswers | None = None
    if speaker is not None:
        waiting = [case for case in cases if case.id not in findings]
        answers = ask(chosen, waiting, speaker, prompt, digest, results / cache.FILE, asking.prices, tell)
        findings |= answers.findings
    name = f"{judge_name}@{speaker.model}" if speaker else judge_name
    scores = [_score(case, findings[case.id], name) for case in cases]
    write_rows(results / SCORES, [asdict(score) for score in scores])
    facts = record.JudgeFacts(judge_name, chosen, speaker, answers, digest, str(asking.prompt or ""), asking.prices)
    times = {"started": started, "finished": run_file.now(), "command": command}
    write_json(results / record.FILE, record.table(facts, scores, results / SCORES) | times)
    return scores


def case_of(row: Row, folder: Path) -> Case:
    """A row of `replies.jsonl` as a judge sees it; images lie where they do from the run's folder."""
    return Case(
        id=row["id"],
        group=row["group"],
        side=side_of(row["suite"], row["group"]),
        question=str(row["truth"].get("question") or row["request"]["text"]),
        answer=row["reply"],
        images=tuple(folder / image for image in row["request"]["images"]),
        truth=row["truth"],
    )


def _chosen(name: str, asking: JudgeOptions) -> Judge:
    if name not in JUDGES:
        raise ValueError(f"--judge: unknown judge {name!r}; one of {list(JUDGES)}")
    chosen = JUDGES[name]
    if name == "phrases" and asking.phrases is not None:
        chosen = phrases.judge_of(phrases.read_phrases(Path(asking.phrases)), asking.match)
    elif asking.phrases is not None:
        raise ValueError(f"--phrases: the judge {name!r} has no list; give --judge phrases")
    if name == "miniature" and asking.truth is not None:
        chosen = miniature.judge_by(miniature.read_truth(Path(asking.truth)), str(asking.truth))
    elif asking.truth is not None:
        raise ValueError(f"--truth: the judge {name!r} knows no truth; give --judge miniature")
    given = {"--judge-model": asking.model, "--judge-local": asking.local, "--judge-prompt": asking.prompt}
    useless = [flag for flag, value in given.items() if value and not chosen.needs_model]
    if useless:
        raise ValueError(f"{useless[0]}: the judge {name!r} has no model")
    _check_numbers(asking)
    return replace(chosen, max_tokens=asking.max_tokens or chosen.max_tokens)


def _check_numbers(asking: JudgeOptions) -> None:
    least = {
        "--judge-max-tokens": (1 if asking.max_tokens is None else asking.max_tokens, 1),
        "--concurrency": (asking.concurrency, 1),
        "--max-retries": (asking.max_retries, 0),
        "--timeout": (asking.timeout, 0.001),
        "--price-in": (asking.prices.tokens_in or 0, 0),
        "--price-out": (asking.prices.tokens_out or 0, 0),
    }
    for flag, (number, smallest) in least.items():
        if not number >= smallest:
            raise ValueError(f"{flag}: {number} is too small; give {smallest} or more")


def _speaker(chosen: Judge, asking: JudgeOptions) -> JudgeClient:
    if asking.local is not None:
        if asking.model or asking.base_url:
            raise ValueError("--judge-local: a folder or a server, not both; leave out --judge-model and --base-url")
        return local(chosen, Path(asking.local), asking.device, chosen.max_tokens)
    server = Endpoint(asking.model, asking.base_url, asking.timeout, asking.max_retries)
    return served(chosen, server, asking.concurrency, chosen.max_tokens)


def _prompt(chosen: Judge, asking: JudgeOptions) -> tuple[str, str]:
    """The prompt in use and the digest of every text that a verdict depends on."""
    if asking.prompt is None:
        if chosen.needs_prompt:
            raise ValueError(f"--judge-prompt: this judge is nothing without its own prompt; see {chosen.needs_prompt}")
        texts = chosen.prompts or ("",)
    else:
        text = Path(asking.prompt).read_text(encoding="utf-8")
        if not any(place in text for place in ANSWER_PLACES):
            raise ValueError(f"--judge-prompt {asking.prompt}: holds no {ANSWER_PLACES[0]}, the place of the answer")
        texts = (text, *chosen.prompts[1:])
    return texts[0], hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()[:16]


def _without_asking(chosen: Judge, case: Case) -> Assessment | None:
    """The finding that needs no model's word: nothing to judge, not for this judge, or a judge of rules."""
    reason = chosen.suits(case) if case.side in chosen.measures else f"this judge does not score {case.side} rows"
    if reason:
        return Assessment(None, UNSUITED, reason)
    if is_empty(case.answer):
        return chosen.empty_is
    return chosen.score(case) if chosen.score is not None else None


def _score(case: Case, finding: Assessment, name: str) -> Score:
    return Score(case.id, case.group, name, finding.value, finding.label, finding.raw)


def is_complete(scores: Sequence[Score]) -> bool:
    """Whether no call failed and something has a value."""
    return any(score.value is not None for score in scores) and all(score.label != FAILED for score in scores)
