"""What several processes must agree on before a run begins."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed

from safevlm import sharding

T = TypeVar("T")

LOCK = ".run.lock"
MARK = ".all-nodes-see-this"
SECONDS = 30
"""Network disks show new files late."""


def join_deepspeed() -> None:
    """Before anything of the model exists: ZeRO-3 would count one process (base facts §4.5)."""
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "run.deepspeed wants a launcher: deepspeed --num_gpus N --module safevlm train RECIPE (scripts/stage1.sh), "
            "or torchrun; --run.deepspeed null trains without"
        )
    import deepspeed

    deepspeed.init_distributed()


def agree(process: int, processes: int, work: Callable[[], T]) -> T:
    """What `work` returns in the first process, in all of them; what it raises of a user's errors, too.

    Every process must call. ValueError: `work` said so.
    """
    if processes == 1:
        return work()
    told: list[Any] = [None, ""]
    if process == 0:
        try:
            told = [work(), ""]
        except (ValueError, OSError, ImportError) as error:
            told = [None, str(error)]
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1]:
        raise ValueError(told[1])
    return told[0]


@contextlib.contextmanager
def only_run(out: Path, process: int, processes: int) -> Iterator[None]:
    """Holds the folder of a run. ValueError, in every process: another run works there."""
    with contextlib.ExitStack() as stack:
        agree(process, processes, lambda: stack.enter_context(sharding.alone(out / LOCK, out, "--run.out")))
        yield


def leave() -> None:
    """After everything is saved. A group that is still open when Python ends can abort the process (exit code -6)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_shared_disk(out: Path, process: int, processes: int) -> None:
    """ValueError when a process does not see what the first one writes: its part of each checkpoint would be lost."""
    if processes == 1:
        return
    mark = out / MARK
    if process == 0:
        out.mkdir(parents=True, exist_ok=True)
        mark.touch()
    torch.distributed.barrier()
    seen = _appears(mark)
    torch.distributed.barrier()
    if process == 0:
        mark.unlink()
    if not seen:
        raise ValueError(f"run.out: process {process} does not see {out}; put it on a disk that all nodes share")


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
