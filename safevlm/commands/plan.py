"""`safevlm plan`."""

from __future__ import annotations

import argparse

from safevlm.command_line import COUNT, number
from safevlm.commands import OK
from safevlm.evaluation.speed import cost_checks, cost_plan
from safevlm.evaluation.speed.cost_constants import measured

TEXT = "Time and GPU hours of training, RTVLM, an audit and serving on 1 to 64 GPUs, from what one H200 took."
SHAPE = "One NVIDIA H200, LLaVA-v1.5 7B's shape, random weights"
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "s"))


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=COUNT, nargs="+", default=[1, 8, 64], metavar="N", help="numbers of GPUs (1 8 64)"
    )
    parser.add_argument(
        "--jobs",
        choices=cost_plan.JOBS,
        nargs="+",
        default=[],
        help="what is planned: train, rtvlm, audit, serve (all)",
    )
    parser.add_argument(
        "--gpu-hour",
        type=number(float, above=0),
        metavar="PRICE",
        help="of one GPU for an hour, in your currency; without it there are GPU hours and no cost",
    )
    parser.add_argument(
        "--images",
        type=COUNT,
        nargs="+",
        default=[1_000_000, 1_000_000_000],
        metavar="N",
        help="images of an audit (1000000 1000000000)",
    )
    parser.add_argument("--answer-tokens", type=COUNT, default=128, metavar="N", help="of an answer (128)")
    parser.add_argument(
        "--judge-tokens", type=COUNT, default=64, metavar="N", help="that RTVLM's judge writes of an answer (64)"
    )
    parser.add_argument(
        "--stage2-batch",
        type=number(int, least=1, most=8),
        default=2,
        metavar="N",
        help="records per step and GPU (2); 8 take 70 GiB",
    )
    parser.add_argument("--check", action="store_true", help="what the arithmetic says of the runs that were measured")


def run(options: argparse.Namespace) -> int:
    for line in _check() if options.check else _plan(options):
        print(line)
    return OK


def _check() -> list[str]:
    """The runs that were measured, and what the arithmetic says of them."""
    lines = [
        f"{SHAPE}; seconds of a step or a batch of answers, images/s of an audit.",
        row("run", "measured", "predicted", "off by", "predicted from"),
        row("---", "---:", "---:", "---:", "---"),
    ]
    for one in cost_checks.predictions():
        value, off = measured(one.run), f"{100 * one.error:+.0f} %"
        lines.append(row(one.run, f"{value:.4g}", f"{one.predicted:.4g}", off, one.source))
    return lines


def _plan(options: argparse.Namespace) -> list[str]:
    workload = cost_plan.Workload(
        tuple(options.images), options.answer_tokens, options.judge_tokens, options.stage2_batch
    )
    price = options.gpu_hour
    cost, edge = (["cost"], ["---:"]) if price else ([], [])
    return [
        f"{SHAPE}; several GPUs are an assumed range (docs/planning.md).",
        row("job", "GPUs", "time", "GPU hours", *cost, "rate", "note"),
        row("---", "---:", "---:", "---:", *edge, "---:", "---"),
        *(_line(one, price) for gpus in options.gpus for one in cost_plan.plan(workload, gpus, options.jobs)),
        *([] if price else ["No cost: --gpu-hour takes the price of one GPU for an hour."]),
    ]


def _line(planned: cost_plan.Planned, price: float | None) -> str:
    best, worst = planned.gpu_hours
    cost = [span(figure(best * price), figure(worst * price))] if price else []
    low, high = planned.rate
    rate = f"{span(figure(low), figure(high))} {planned.unit}"
    time = span(*(duration(seconds) for seconds in planned.seconds))
    return row(planned.job, planned.gpus, time, span(figure(best), figure(worst)), *cost, rate, planned.note)


def duration(seconds: float) -> str:
    """For people, in the largest unit that it fills."""
    size, name = next((size, name) for size, name in UNITS if seconds >= size)
    return f"{seconds / (size or 1):,.1f} {name}"


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def row(*cells: object) -> str:
    """A line of a table in markdown."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"
