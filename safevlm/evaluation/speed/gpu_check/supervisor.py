"""Runs the steps: one worker process per group, a limit for each step, a budget for all, a row after each.

It tells a worker one step at a time over its standard input, and kills one that is late. A worker that loses its
supervisor ends itself, so a killed check leaves no process on the card.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from safevlm.evaluation.speed.gpu_check import plan, rows
from safevlm.evaluation.speed.gpu_check.plan import Step

LOG = "log.txt"
"""What the workers said, in the result's folder."""
TOLD = 12
"""Last lines of a worker that died which its row keeps."""
WORKER = (sys.executable, "-u", "-m", "safevlm.evaluation.speed.gpu_check.worker")


@dataclass
class Budget:
    """Seconds for the whole check, from when it is made."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


class WorkerProcess:
    """A worker, and the pipe on which it answers."""

    def __init__(self, out: Path, options: Sequence[str]) -> None:
        reading, writing = os.pipe()
        self.log = (out / LOG).open("ab")
        self.log_start = self.log.tell()
        try:
            self.process = subprocess.Popen(
                [*WORKER, *options, "--answers", str(writing)],
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
        self._answers, self._heard = reading, b""
        self.fresh = True
        """No step has begun in it."""
        self.code: int | None = None
        """What it ended with."""

    def tell(self, step: Step) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"step": step.name}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None: none in this time. EOFError: the process has ended."""
        end = time.monotonic() + seconds
        while b"\n" not in self._heard:
            # not a buffered reader: what it holds back already, `select` would wait for
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._answers, 65536)
            if not more:
                raise EOFError
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def last_words(self) -> str:
        """The end of what this process wrote."""
        with Path(self.log.name).open("rb") as file:
            file.seek(self.log_start)
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return "\n".join(lines[-TOLD:])

    def die(self) -> None:
        """Waits a moment for a process that is ending by itself: its traceback is written last."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def end(self) -> None:
        """Ends the process at once, whatever it is doing."""
        _close(self.process.stdin)  # a worker that listens ends itself
        self.code = self._wait()
        os.close(self._answers)
        self.log.close()

    def _wait(self) -> int:
        try:
            return self.process.wait(0.5)  # one that has died by itself has a code of its own
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        return  # the other side has gone


def run(
    steps: Sequence[Step],
    out: Path,
    budget: Budget,
    options: Sequence[str],
    told: Callable[[dict[str, Any]], None],
) -> None:
    """Runs all steps that have no final row in `out` yet. `options`: the worker's; `told` hears of every new row."""
    done = rows.read(out / rows.FILE)

    def note(step: Step, status: str, seconds: float = 0.0, **more: Any) -> None:
        row = {
            "step": step.name,
            "group": step.group,
            "status": status,
            "seconds": round(seconds, 3),
            "estimate": step.estimate,
            "limit": step.limit,
            **more,
        }
        rows.append(out / rows.FILE, row)
        told(row)

    left = [step for step in steps if done.get(step.name, {}).get("status") not in rows.FINAL]
    for group in dict.fromkeys(step.group for step in left):
        with _worker(out, options) as worker:
            for step in (step for step in left if step.group == group):
                if step.needs and not plan.is_there(step.needs):
                    note(step, rows.ABSENT, why=f"{step.needs} is not installed")
                elif worker.never_began:
                    note(step, rows.FAILED, why=worker.never_began)
                elif budget.left < step.estimate + (0 if worker.running else plan.START):
                    note(step, rows.NOT_RUN, why=f"{budget.left:.0f} s were left")
                else:
                    note(step, **_run_one(step, worker, budget))


class _Worker:
    """The group's process, started when a step first needs it, and again after one has died."""

    def __init__(self, out: Path, options: Sequence[str]) -> None:
        self.out, self.options = out, options
        self.running: WorkerProcess | None = None
        self.never_began = ""
        """Why the process died before its first step: another one would, too."""

    def get(self) -> WorkerProcess:
        if self.running is None:
            self.running = WorkerProcess(self.out, self.options)
        return self.running

    def end(self) -> None:
        if self.running is not None:
            self.running.end()
            self.running = None


@contextmanager
def _worker(out: Path, options: Sequence[str]) -> Iterator[_Worker]:
    worker = _Worker(out, options)
    try:
        yield worker
    finally:
        worker.end()


def _run_one(step: Step, worker: _Worker, budget: Budget) -> dict[str, Any]:
    """Status, seconds and result of a step; its process is ended unless the step ended well or ran out of memory."""
    process = worker.get()
    started = time.monotonic()
    try:
        process.tell(step)
        if process.fresh:
            begun = process.answer(min(plan.START_LIMIT, budget.left))
            if begun is None:
                raise TimeoutError(f"no first step after {time.monotonic() - started:.0f} s")
            process.fresh = False
            start = {"start_seconds": round(time.monotonic() - started, 3)}
            started = time.monotonic()
        else:
            start = {}
        answer = process.answer(min(step.limit, budget.left))
        if answer is None:
            raise TimeoutError(f"stopped after {time.monotonic() - started:.0f} s")
    except TimeoutError as late:
        worker.end()
        why = f"{late}\n{process.last_words()}".strip()
        return {"status": rows.TIMED_OUT, "seconds": time.monotonic() - started, "why": why}
    except (EOFError, OSError):
        process.die()
        worker.end()
        why = f"the process ended with code {process.code}\n{process.last_words()}".strip()
        worker.never_began = why if process.fresh else ""
        return {"status": rows.FAILED, "seconds": time.monotonic() - started, "why": why}
    if answer["status"] not in rows.FINAL:
        worker.end()
    return {**answer, **start, "seconds": time.monotonic() - started}
