"""`safevlm eval judge`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from safevlm.command_line import AMOUNT, COUNT, number
from safevlm.commands import FINDING, OK
from safevlm.evaluation.judges import JUDGES
from safevlm.evaluation.judges.judging import is_complete, judge
from safevlm.evaluation.judges.options import JudgeOptions, Prices
from safevlm.evaluation.judges.phrases import MATCHES
from safevlm.evaluation.runs.files import SCORES

TEXT = "score the replies of a run, without the model"
DESCRIPTION = "Turns OUT/replies.jsonl into OUT/scores.jsonl."


def flags(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    about = {name: row.about for name, row in JUDGES.working().items()}
    command.epilog = "Judges:\n" + "\n".join(f"  {name:<21} {text}" for name, text in about.items())
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    command.add_argument("--into", metavar="DIR", help="folder for scores and judge.json (default: that of the run)")
    command.add_argument(
        "--judge",
        default="",
        metavar="NAME",
        help="one of those below, or package.module:NAME of your own (default: the suite's own judge)",
    )
    command.add_argument("--judge-model", default="", metavar="NAME", help="the judge's model, as its server names it")
    command.add_argument(
        "--base-url",
        default="",
        metavar="URL",
        help="OpenAI-compatible server (default: OPENAI_BASE_URL; the key is in OPENAI_API_KEY)",
    )
    command.add_argument("--judge-local", metavar="DIR", help="the judge's model in a folder, instead of a server")
    command.add_argument("--judge-prompt", metavar="FILE", help="prompt with {question} and {answer}, instead of ours")
    command.add_argument("--judge-max-tokens", type=COUNT, metavar="N", help="longest reply (default: the judge's own)")
    command.add_argument("--concurrency", type=COUNT, default=8, metavar="N", help="calls at once (default: 8)")
    command.add_argument(
        "--max-retries", type=AMOUNT, default=5, metavar="N", help="tries after a failed one (default: 5)"
    )
    command.add_argument(
        "--timeout", type=number(float, above=0), default=60.0, metavar="S", help="seconds for a try (default: 60)"
    )
    command.add_argument("--price-in", type=number(float, least=0), metavar="X", help="price of a million tokens sent")
    command.add_argument(
        "--price-out", type=number(float, least=0), metavar="X", help="price of a million tokens received"
    )
    command.add_argument("--device", default="auto", help="of a local judge: auto, cpu, cuda, ... (default: auto)")
    command.add_argument("--phrases", metavar="FILE", help="list of the judge `phrases`, one per line")
    command.add_argument(
        "--truth", metavar="FILE", help="judge `miniature`: truth beside another benchmark's layout of the miniature"
    )
    command.add_argument(
        "--match", default="substring", choices=list(MATCHES), help="how a phrase is looked for (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    scores = judge(
        options.out, options.judge, _options(options), into=options.into, command=options.command_line, tell=print
    )
    for group in dict.fromkeys(score.group for score in scores):
        labels = Counter(score.label for score in scores if score.group == group)
        print(f"{group}: " + ", ".join(f"{label} {count}" for label, count in labels.most_common()))
    print(f"{Path(options.into or options.out) / SCORES}: {len(scores)} scores")
    return OK if is_complete(scores) else FINDING


def _options(options: argparse.Namespace) -> JudgeOptions:
    return JudgeOptions(
        model=options.judge_model,
        base_url=options.base_url,
        local=options.judge_local,
        prompt=options.judge_prompt,
        max_tokens=options.judge_max_tokens,
        concurrency=options.concurrency,
        max_retries=options.max_retries,
        timeout=options.timeout,
        prices=Prices(options.price_in, options.price_out),
        device=options.device,
        phrases=options.phrases,
        match=options.match,
        truth=options.truth,
    )
