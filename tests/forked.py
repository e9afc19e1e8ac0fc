"""Processes of their own that begin with everything imported: forked from one that has done nothing but import.

A process that is started anew spends seconds on importing torch and transformers. How a user starts one is tested once
for each way, by `patience.start`; what a process does when others work beside it, or when it is killed, is tested here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests import patience

PRELOADED = [
    "tests.training.without_operator.sitecustomize",
    "transformers.trainer",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "deepspeed",
    "peft",
    "safevlm.__main__",
    "safevlm.engine",
    "safevlm.training.recipe",
    "safevlm.training.run",
    "safevlm.training.stages",
]


class Forked:
    """A process that calls a function of a module; as much of `subprocess.Popen` as tests need."""

    def __init__(self, work: Callable[..., None], *arguments: Any, log: Path | None = None, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process: ForkServerProcess = context.Process(
            target=_begin, args=(work, arguments, log, {**os.environ, **environment}, os.getcwd())
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def command(words: Sequence[object], log: Path | None = None, **environment: str) -> Forked:
    """`safevlm WORDS`, started; what it says goes to `log`."""
    return Forked(run_command, [str(word) for word in words], log=log, **environment)


def together(count: int, work: Callable[..., None], arguments: Sequence[Any], folder: Path, **told: str) -> list[str]:
    """`work` in processes that know each other, as torchrun starts them; returns what each of them said.

    AssertionError: one has failed; the others are ended.
    """
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count), **told}
    logs = [folder / f"output-{rank}.txt" for rank in range(count)]
    processes = [
        Forked(work, *arguments, log=log, **told, RANK=str(rank), LOCAL_RANK=str(rank)) for rank, log in enumerate(logs)
    ]
    try:
        finish(processes)
    finally:
        for process in processes:
            process.kill()
    said = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    assert not any(process.wait() for process in processes), "\n".join(text[-6_000:] for text in said)
    return said


def finish(processes: Sequence[Forked]) -> None:
    """Waits until all have ended, or one of them badly."""

    def over() -> bool:
        codes = [process.poll() for process in processes]
        return None not in codes or any(codes)

    for process in processes:  # whichever is the last
        patience.wait_until(lambda process=process: over() or process.poll() is not None, process.pid)


def free_port() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return str(opened.getsockname()[1])


def _begin(
    work: Callable[..., None], arguments: tuple[Any, ...], log: Path | None, environment: dict[str, str], folder: str
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.flush(), sys.stderr.flush()
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(output, number)
    work(*arguments)


def run_command(words: list[str]) -> None:
    """`safevlm WORDS` in this process, and its end."""
    from safevlm.__main__ import main

    sys.argv = ["safevlm", *words]
    sys.exit(main())
