"""Waiting for other processes: a test fails when one of them hangs, not when the machine is slow.

A process hangs when it and its children neither compute nor end for `IDLE` seconds. Before it is killed it gets
SIGABRT, so that with PYTHONFAULTHANDLER each of its threads says where it stands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psutil

IDLE = 150.0
"""Seconds; a wait for a file of another process sleeps for less."""
LIMIT = 1800.0
"""Seconds; for a process that computes and gets nowhere."""
COMPUTES = 0.25, 0.01
"""CPU seconds, and as many more per second; less is a loop that only looks whether something has come."""
STEP, LOOK = 0.01, 0.5
"""Seconds between two looks at the condition, and at the process."""


class Hang(AssertionError):
    """A process that does nothing."""


class Watch:
    """Whether a process and its children still compute. `process` is the one that the others descend from."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.begun = self.moved = time.monotonic()
        self.seconds = self._cpu_seconds()

    def look(self) -> None:
        """Hang: it has stood still for too long."""
        now, seconds = time.monotonic(), self._cpu_seconds()
        if abs(seconds - self.seconds) > COMPUTES[0] + COMPUTES[1] * (now - self.moved):
            self.moved, self.seconds = now, seconds
        if now - self.moved > IDLE or now - self.begun > LIMIT:
            raise Hang(f"process {self.process}: {self.seconds:.1f} CPU seconds in {now - self.begun:.0f} seconds")

    def _cpu_seconds(self) -> float:
        total = 0.0
        for one in _tree(self.process):
            try:
                times = one.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total


def run(words: Sequence[str], log: Path, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command in a session of its own, which ends with it. Hang: the output says where."""
    with log.open("w+b") as output:
        process = start(words, cwd, output, **environment)
        try:
            code = finish(process)
        except Hang as error:
            raise Hang(f"{error}\n{_end_of(log)}") from error
    return code, _end_of(log)


def start(
    words: Sequence[str], cwd: Path, output: IO[bytes] | int = subprocess.DEVNULL, **environment: str
) -> subprocess.Popen[bytes]:
    """A command in a session of its own; stdout and stderr go to `output`."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment}
    return subprocess.Popen(words, cwd=cwd, env=variables, stdout=output, stderr=output, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Hang: it and its children are aborted."""
    wait_until(lambda: process.poll() is not None, process.pid)
    return process.wait()


def wait_until(condition: Callable[[], bool], process: int, alive: Callable[[], bool] = lambda: True) -> None:
    """Until something holds that `process` brings about. AssertionError: it has ended without; Hang: it never will."""
    watch, next_look = Watch(process), 0.0
    while not condition():
        assert alive() or condition(), "the process ended too early; give it more to do"
        if time.monotonic() >= next_look:
            try:
                watch.look()
            except Hang:
                _abort(process)
                raise
            next_look = time.monotonic() + LOOK
        time.sleep(STEP)


def _tree(process: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(process)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _abort(process: int) -> None:
    tree = _tree(process)
    for kind in (signal.SIGABRT, signal.SIGKILL):
        for one in reversed(tree):
            try:
                one.send_signal(kind)
            except psutil.Error:
                continue
        psutil.wait_procs(tree, timeout=5)


def _end_of(log: Path, characters: int = 6_000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]
