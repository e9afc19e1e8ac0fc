"""The commands of the evaluation: `python -m eval ask | judge | report | overhead`.

Exit codes: 0 fine, 1 a finding (nothing could be scored; a run in the report is unfinished), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval.agreement import agreement
from eval.agreement import told as told_agreement
from eval.ask import ask, missing
from eval.compare import compare, markdown
from eval.files import SCORES
from eval.gallery import PER_GROUP
from eval.judge import is_complete, judge
from eval.judge_options import add as add_judge
from eval.judge_options import asking_of
from eval.judges.refusal_table import refusals
from eval.overhead import overhead
from eval.report import TITLE, report
from eval.served import told
from eval.suites import SUITES
from eval.suites.overview import lines, standings
from eval.throughput import throughput
from eval.throughput import told as told_throughput

FINE, FINDING, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
EXPECTED = (ValueError, OSError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.command_line = shlex.join(["python", "-m", "eval", *words])
    try:
        return options.run_command(options)
    except EXPECTED as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _ask(options: argparse.Namespace) -> int:
    count = ask(
        options.suite, options.data, options.model, options.defense, options.out,
        policy=options.policy, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens,
        limit=options.limit, device=options.device, base=options.base, seed=options.seed, shard=options.shard,
        partial=options.partial, command=options.command_line,
    )  # fmt: skip
    print(f"{options.out}: {count} new replies")
    left, failed = missing(options.out)
    if left:
        print(f"{options.out}: {left} requests have no reply yet; other processes, or this command again, ask them")
    if failed:
        print(f"{options.out}: without an answer: {told(failed)}; this command asks them again")
    return FINDING if failed else FINE


def _judge(options: argparse.Namespace) -> int:
    scores = judge(
        options.out, options.judge, asking_of(options), into=options.into, command=options.command_line, tell=print
    )
    for group in dict.fromkeys(score.group for score in scores):
        labels = Counter(score.label for score in scores if score.group == group)
        print(f"{group}: " + ", ".join(f"{label} {count}" for label, count in labels.most_common()))
    print(f"{Path(options.into or options.out) / SCORES}: {len(scores)} scores")
    return FINE if is_complete(scores) else FINDING


def _refusals(options: argparse.Namespace) -> int:
    print(refusals(Path(options.out), Path(options.phrases) if options.phrases else None))
    return FINE


def _agreement(options: argparse.Namespace) -> int:
    table = agreement(options.a, options.b, options.out, options.more, options.command_line)
    print(told_agreement(table))
    return FINE


def _overhead(options: argparse.Namespace) -> int:
    table = overhead(
        options.suite, options.data, options.model, options.defense, options.against, options.out, options.n,
        policy=options.policy, max_new_tokens=options.max_new_tokens, device=options.device, base=options.base,
        seed=options.seed, command=options.command_line,
    )  # fmt: skip
    print(f"{options.out}: {table['value']:.3f} x [{table['low']:.3f}, {table['high']:.3f}], n {table['n']}")
    return FINE


def _throughput(options: argparse.Namespace) -> int:
    table = throughput(
        options.suite, options.data, options.model, options.defense, options.out,
        blocks=options.blocks, block_size=options.block_size, batch_size=options.batch_size,
        processes=options.processes, policy=options.policy, max_new_tokens=options.max_new_tokens,
        device=options.device, base=options.base, seed=options.seed, command=options.command_line,
    )  # fmt: skip
    print("\n".join(told_throughput(table)))
    return FINE


def _compare(options: argparse.Namespace) -> int:
    print(markdown(compare(options.a, options.b, options.out, options.seed)))
    return FINE


def _suites(options: argparse.Namespace) -> int:
    found = standings(options.data, options.suite)
    print("\n".join(lines(found)))
    return FINDING if any(one.is_short for one in found) else FINE


def _report(options: argparse.Namespace) -> int:
    summary = report(
        _named(options.run), options.out,
        head=options.head, seconds=options.seconds, title=options.title, per_group=options.per_group,
    )  # fmt: skip
    print((Path(options.out) / "table.md").read_text(encoding="utf-8"))
    print(f"{Path(options.out) / 'report.html'}")
    return FINE if all(run["finished"] for run in summary["runs"].values()) else FINDING


def _named(runs: Sequence[str]) -> list[tuple[str, Path]]:
    """NAME=DIR, in the order given; a name may come with several suites."""
    pairs = []
    for run in runs:
        name, equals, folder = run.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--run: {run!r} is not NAME=DIR")
        pairs.append((name, Path(folder)))
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Evaluation in three steps with files between: ask (needs the model), judge, report.",
        epilog="Exit codes: 0 fine, 1 a finding (nothing scored, a run unfinished), 2 wrong usage.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "ask",
        help="put a suite's questions to a model behind a defence",
        description="Writes OUT/replies.jsonl and OUT/run.json. A run that was stopped goes on when asked again.",
    )
    _add_model(command)
    command.add_argument("--batch-size", type=int, default=64, metavar="N", help="requests at once (default: 64)")
    command.add_argument(
        "--limit", type=int, metavar="N", help="ask only N requests, the groups in turn (default: all)"
    )
    command.add_argument(
        "--shard", metavar="I/N", help="this process asks the I-th of N parts (default: as torchrun says, or all)"
    )
    command.add_argument(
        "--partial", action="store_true", help="go on where rows or pictures of the suite are missing; it is told"
    )
    command.set_defaults(run_command=_ask)

    command = commands.add_parser(
        "judge",
        help="score the replies of a run, without the model",
        description="Turns OUT/replies.jsonl into OUT/scores.jsonl.",
    )
    add_judge(command)
    command.set_defaults(run_command=_judge)

    command = commands.add_parser(
        "refusals",
        help="how often the refusal rules err, beside phrase lists",
        description="Measures rules and phrase lists on the labelled answers that come with the code.",
    )
    command.add_argument("--out", required=True, metavar="FILE", help="JSON file for the table")
    command.add_argument("--phrases", metavar="FILE", help="an official list, one phrase per line, as more columns")
    command.set_defaults(run_command=_refusals)

    command = commands.add_parser(
        "agreement",
        help="how far two judges agree about the same replies",
        description="Share and Cohen's kappa per group; A and B are folders with scores.jsonl of one run.",
    )
    command.add_argument("a", metavar="A", help="folder with scores")
    command.add_argument("b", metavar="B", help="folder with another judge's scores")
    command.add_argument("--out", metavar="FILE", help="write the table as JSON too, with the ids that differ")
    command.add_argument(
        "--more", nargs=2, action="append", default=[], metavar=("A", "B"), help="judgings of a further run; repeat"
    )
    command.set_defaults(run_command=_agreement)

    command = commands.add_parser(
        "overhead",
        help="time a defence against a bare model, on benign requests",
        description="Writes OUT/overhead.json: time per benign request over the bare model's, paired, one by one.",
    )
    _add_model(command)
    command.add_argument("--against", required=True, metavar="MODEL", help="model that answers without a defence")
    command.add_argument("--n", type=int, default=60, metavar="N", help="requests that are timed (default: 60)")
    command.set_defaults(run_command=_overhead)

    command = commands.add_parser(
        "throughput",
        help="requests a second: one by one, in batches, by several processes",
        description="Writes OUT/throughput.json: every block of requests in every way, and whether the replies agree.",
    )
    _add_model(command)
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="requests at once (default: 16)")
    command.add_argument("--processes", type=int, default=2, metavar="N", help="processes (default: 2; 1: none more)")
    command.add_argument("--blocks", type=int, default=8, metavar="N", help="blocks that are timed (default: 8)")
    command.add_argument("--block-size", type=int, default=64, metavar="N", help="requests per block (default: 64)")
    command.set_defaults(run_command=_throughput)

    command = commands.add_parser(
        "compare",
        help="two judged runs of the same questions, paired by id",
        description="Differences with intervals and McNemar's p; A and B are folders of judged runs.",
    )
    command.add_argument("a", metavar="A", help="folder of a judged run")
    command.add_argument("b", metavar="B", help="folder of another one")
    command.add_argument("--out", metavar="FILE", help="write the comparison as JSON too, with all discordant ids")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    command.set_defaults(run_command=_compare)

    command = commands.add_parser(
        "suites",
        help="the benchmarks there are: source, licence, rows published and found",
        description="Reads tables only. Exit code 1: a suite that is there has fewer rows or pictures than published.",
    )
    command.add_argument("--data", type=Path, metavar="DIR", help="a folder of suites, or one suite's own folder")
    command.add_argument("--suite", action="append", choices=list(SUITES), metavar="NAME", help="only this one; repeat")
    command.set_defaults(run_command=_suites)

    command = commands.add_parser(
        "report",
        help="tables and pages from judged runs, without the model",
        description="Writes OUT/report.html (one file, no network), OUT/table.md, OUT/table.tex and OUT/summary.json.",
    )
    command.add_argument(
        "--run", action="append", required=True, metavar="NAME=DIR", help="a row; repeat for more rows and suites"
    )
    command.add_argument("--head", metavar="NAME", help="the run whose detector's accuracy is reported (default: none)")
    command.add_argument("--seconds", metavar="FILE", help="JSON object of wall times, copied into summary.json")
    command.add_argument("--title", default=TITLE, help="heading of the page (default: %(default)s)")
    command.add_argument(
        "--per-group", type=int, default=PER_GROUP, metavar="N", help="samples shown per group (default: %(default)s)"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder for the four files")
    command.set_defaults(run_command=_report)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    """Options of the commands that load a model."""
    command.add_argument("--suite", default="miniature", choices=list(SUITES), help="questions (default: %(default)s)")
    command.add_argument("--data", required=True, metavar="DIR", help="folder of the suite's files")
    command.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder; ask: or http://HOST/v1#NAME")
    command.add_argument(
        "--defense", default="none", metavar="NAME", help="defence, or a stack a+b (default: none)"
    )
    command.add_argument("--policy", metavar="FILE", help="YAML with what to do per category and level")
    command.add_argument("--base", metavar="DIR", help="base model of the checkpoint, if it has moved")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    command.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest reply in tokens (default: the suite's)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed for whatever is drawn at random (default: 0)"
    )


if __name__ == "__main__":
    sys.exit(main())
