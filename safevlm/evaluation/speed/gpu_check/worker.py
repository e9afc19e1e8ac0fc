"""A process that runs steps of one group, told one at a time, and answers each with what it measured.

standard input   {"step": NAME} per line; its end ends the process, in the middle of a step too
--answers FD     {"begun": true} once, when torch and the device are up; then {"status", "result" or "why"} per step
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safevlm.evaluation.speed.gpu_check import plan, rows
from safevlm.evaluation.speed.gpu_check.supervisor import TOLD

PACKAGE = plan.__name__.rpartition(".")[0]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    told = _listen()
    name = told.get()
    with os.fdopen(options.answers, "w", encoding="utf-8") as answers:

        def say(answer: dict[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        from safevlm.evaluation.speed.gpu_check.session import Session

        session = Session.open(options.shape, options.device, options.out)
        say({"begun": True})
        steps = {step.name: step for step in plan.STEPS}
        while True:
            answer = run(steps[name], session)
            say(answer)
            if answer["status"] == rows.FAILED:
                return 1  # what the step left behind is nobody's business
            name = told.get()


def run(step: plan.Step, session: Any) -> dict[str, Any]:
    """The answer to one step."""
    import torch

    module, _, function = step.work.partition(":")
    try:
        result = getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)(session, **step.options)
        answer = {"status": rows.OK, "result": result}
    except torch.cuda.OutOfMemoryError as error:
        answer = {"status": rows.OUT_OF_MEMORY, "why": str(error).splitlines()[0], "memory": session.memory()}
    except Exception:  # noqa: BLE001 - whatever breaks a step is its row, not the end of the check
        answer = {"status": rows.FAILED, "why": "\n".join(traceback.format_exc().strip().splitlines()[-TOLD:])}
    session.tidy()  # here, where no traceback holds a step's tensors any more
    return answer


def _listen() -> queue.Queue[str]:
    """Names of steps as they are told. The end of the input ends the process: the supervisor has gone, or is done."""
    told: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            told.put(json.loads(line)["step"])
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return told


if __name__ == "__main__":
    sys.exit(main())
