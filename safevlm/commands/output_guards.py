"""`safevlm serve --output-guard NAME`: which judge that is, and how it is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safevlm.command_line import number
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from safevlm.serve.guarded import GuardedModel
    from safevlm.serve.output_guard import AnswerJudge, AnswerVerdict, OutputGuard
    from safevlm.types import Request

SELF_CHECK = "self-check"
MODERATIONS = "moderations"
ALL = "all"
HARMFUL = "harmful"
Assess = Callable[["Request", str], "AnswerVerdict"]


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output-guard",
        metavar="NAME",
        help=f"judge answers: {SELF_CHECK} (the model itself), {MODERATIONS} (an endpoint), or a judge of "
        "`safevlm eval judge`",
    )
    parser.add_argument(
        "--output-mode", choices=["score", "block"], default="block", help="tell what was seen, or refuse (default)"
    )
    parser.add_argument(
        "--hold-back",
        type=_window,
        default=ALL,
        metavar="N",
        help="characters of a stream that wait for the judge, or all (default)",
    )
    parser.add_argument("--output-url", default="", metavar="URL", help="the judge's OpenAI-compatible server")
    parser.add_argument("--output-model", default="", metavar="NAME", help="the judge's model on that server")
    parser.add_argument(
        "--output-timeout", type=number(float, above=0), default=60.0, metavar="S", help="for a judgement (default 60)"
    )


def output_guard(model: GuardedModel, options: argparse.Namespace) -> OutputGuard | None:
    """UsageError, ValueError: a judge that there is not, or that cannot be asked so."""
    from safevlm.serve.output_guard import OutputGuard, in_threads

    name = options.output_guard
    if not name:
        return None
    window = None if options.hold_back == ALL else options.hold_back
    if name.partition("=")[0] == SELF_CHECK:
        judge: Any = _self_check(model, name, window, options.output_timeout)
    else:
        judge = in_threads(_moderations(options) if name == MODERATIONS else _judge(name, options))
    return OutputGuard(name, judge, options.output_mode, window, options.output_timeout)


def _self_check(model: GuardedModel, name: str, window: int | None, seconds: float) -> AnswerJudge:
    from safevlm.serve.front import Front
    from safevlm.serve.self_judge import SelfJudge, UpstreamSelfJudge, wording_of

    wording = wording_of(model.engine, name)
    if isinstance(model, Front):
        return UpstreamSelfJudge(model.upstream, model.upstream_model, model.engine.processor, wording)
    if window is not None:
        raise UsageError(
            f"--hold-back {window}: {SELF_CHECK} asks the model that is still writing; give --hold-back {ALL}"
        )
    return SelfJudge(model.engine, model.batches, wording, seconds)


def _moderations(options: argparse.Namespace) -> Assess:
    """OpenAI's `/v1/moderations`, of whoever serves it. It is shown the answer alone."""
    from safevlm.evaluation import endpoint
    from safevlm.serve.output_guard import AnswerVerdict

    server = endpoint.Endpoint(options.output_model, options.output_url, options.output_timeout, max_retries=1)
    client = endpoint.connect(server)
    given = {"model": options.output_model} if options.output_model else {}

    def assess(request: Request, text: str) -> AnswerVerdict:
        results = client.moderations.create(input=text, **given).results
        (result,) = (each.to_dict() for each in results)
        categories = {name: value is True for name, value in (result.get("categories") or {}).items()}
        scores = {name: float(value) for name, value in (result.get("category_scores") or {}).items()}
        return AnswerVerdict(MODERATIONS, result["flagged"], categories, scores)

    return assess


def _judge(name: str, options: argparse.Namespace) -> Assess:
    """A judge of `safevlm.evaluation`. What it cannot score has no judgement, which blocks."""
    from safevlm.evaluation.judges import judge_of
    from safevlm.evaluation.judges.base import UNSUITED, Assessment, Case
    from safevlm.evaluation.judges.judging import one_by_one
    from safevlm.evaluation.judges.options import JudgeOptions
    from safevlm.serve.output_guard import AnswerVerdict

    asked = JudgeOptions(options.output_model, options.output_url, max_retries=1, timeout=options.output_timeout)
    try:
        row = judge_of(name, "--output-guard")
    except ValueError as error:
        raise UsageError(f"{error}; or {SELF_CHECK}, or {MODERATIONS}") from error
    if row.needs_model and not options.output_model:
        raise UsageError(f"--output-guard {name}: it asks a model; name it by --output-model, and its --output-url")
    judge, ask = one_by_one(name, asked)

    def assessed(question: str, answer: str, images: Any = ()) -> Assessment:
        # images are opened already; judges open theirs by `open_image`, which takes these as well
        return ask(Case("", "", "harmful", question, answer, cast("tuple[Path, ...]", images)))

    if not judge.needs_model:
        try:
            found = assessed("What is it?", "It is a cup.")
        except (LookupError, ValueError) as error:
            raise UsageError(f"--output-guard {name}: it cannot judge without its suite's truth ({error})") from error
        if found.label == UNSUITED:
            raise UsageError(f"--output-guard {name}: it cannot judge answers of a server: {found.raw}")

    def assess(request: Request, text: str) -> AnswerVerdict:
        found = assessed(request.text, text, request.images)
        if found.value is None:
            return AnswerVerdict(name, error="unreadable")
        is_harmful = found.value > 0.5  # of the side `harmful`: 1 is harm done
        return AnswerVerdict(name, is_harmful, {HARMFUL: is_harmful}, {HARMFUL: found.value})

    return assess


def _window(text: str) -> int | str:
    return ALL if text == ALL else int(number(int, least=1)(text))
