"""`safevlm eval attack`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import COUNT
from safevlm.commands import OK
from safevlm.commands.evaluation.model_flags import add_model
from safevlm.commands.evaluation.suite_flags import data_of
from safevlm.evaluation.attacks import report, strongest, table
from safevlm.evaluation.attacks import run as attacks
from safevlm.evaluation.attacks.job import Effort

TEXT = "attack a guarded model: change images or words, by chance, by gradient, by scores"
DESCRIPTION = (
    "Asks a suite's harmful requests as they are, then attacked, and writes OUT/robustness.json, .md and .png. Every "
    "attack leaves a run's folder OUT/ATTACK. The strongest attack counts, request by request. What was stopped goes "
    "on when asked again."
)


def flags(command: argparse.ArgumentParser) -> None:
    effort = Effort()
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = table.told()
    add_model(command)
    command.add_argument(
        "--attack",
        action="append",
        required=True,
        metavar="NAME[:STRENGTH]",
        help="an attack or a recipe of those below, several with commas; repeat",
    )
    command.add_argument("--group", action="append", default=[], metavar="NAME", help="only this harmful group; repeat")
    command.add_argument("--limit", type=COUNT, metavar="N", help="only N requests, the groups in turn (default: all)")
    command.add_argument("--batch-size", type=COUNT, default=64, metavar="N", help="requests at once (default: 64)")
    command.add_argument(
        "--answers",
        metavar="DIR",
        help="run of an unguarded model, whose replies the attacker wants (default: this model's without its defense)",
    )
    command.add_argument(
        "--images-of", metavar="DIR", help="OUT of another target, whose attacked images are tried here as they are"
    )
    for name, text in (
        ("steps", "steps of a descent"),
        ("starts", "starts of a descent, each weighs detectors against the answer in another way"),
        ("queries", "questions per image of attacks without a gradient"),
        ("draws", "draws of chance that a gradient is averaged over"),
    ):
        default = getattr(effort, name)
        command.add_argument(f"--{name}", type=COUNT, default=default, metavar="N", help=f"{text} (default: {default})")


def run(options: argparse.Namespace) -> int:
    target = attacks.Target(
        suite=options.suite,
        data=Path(data_of(options)),
        model=options.model,
        defense=options.defense,
        groups=attacks.harmful_groups(options.suite, options.group),
        policy=options.policy,
        base=options.base,
        device=options.device,
        limit=options.limit,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    chosen, out = table.parse(options.attack), Path(options.out)
    folders = attacks.attack_all(
        target,
        chosen,
        out,
        Effort(options.steps, options.starts, options.queries, draws=options.draws),
        answers_of=Path(options.answers) if options.answers else None,
        images_of=Path(options.images_of) if options.images_of else None,
        command=options.command_line,
    )
    if not attacks.are_judged(folders):
        attacks.judge_all(options.suite, folders)
    runs = strongest.read(folders)
    print(report.write(runs, out, options.command_line))
    return OK
