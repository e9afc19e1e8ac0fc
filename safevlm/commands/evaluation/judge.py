"""`safevlm eval judge`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from safevlm.commands import FINDING, OK
from safevlm.evaluation.judges.judging import is_complete, judge
from safevlm.evaluation.judges.options import add, asking_of
from safevlm.evaluation.runs.files import SCORES

TEXT = "score the replies of a run, without the model"
DESCRIPTION = "Turns OUT/replies.jsonl into OUT/scores.jsonl."
flags = add


def run(options: argparse.Namespace) -> int:
    scores = judge(
        options.out, options.judge, asking_of(options), into=options.into, command=options.command_line, tell=print
    )
    for group in dict.fromkeys(score.group for score in scores):
        labels = Counter(score.label for score in scores if score.group == group)
        print(f"{group}: " + ", ".join(f"{label} {count}" for label, count in labels.most_common()))
    print(f"{Path(options.into or options.out) / SCORES}: {len(scores)} scores")
    return OK if is_complete(scores) else FINDING
