"""How records become updates: steps per update for a number of processes, updates of a run, and its warm-up."""

from __future__ import annotations

import math

from safevlm.config import PUBLISHED_BATCH, OptimConfig
from safevlm.usage import UsageError


def accumulation(optim: OptimConfig, processes: int) -> int:
    """Steps per update, so that all processes together see `optim.effective_batch` records.

    UsageError: they cannot with this `optim.batch_size`, or `optim.accumulation` says otherwise.
    """
    given, each = optim.accumulation, optim.batch_size
    if given is not None and optim.effective_batch in (None, each * given * processes):
        return given
    wanted = optim.effective_batch or PUBLISHED_BATCH
    steps, rest = divmod(wanted, each * processes)
    if rest or not steps:
        raise UsageError(f"optim.effective_batch: {wanted} cannot be split into {_split(optim, wanted, processes)}")
    if given is not None:
        raise UsageError(
            f"optim.accumulation: {given} makes {each * given * processes} records per update of {processes} processes "
            f"x optim.batch_size {each}, and optim.effective_batch says {wanted}; leave one of them out (null)"
        )
    return steps


def _split(optim: OptimConfig, wanted: int, processes: int) -> str:
    """What cannot be done, and what could be."""
    tried = f"{processes} processes x optim.batch_size {optim.batch_size}"
    if wanted % processes == 0:
        sizes = _divisors(wanted // processes)
        return f"{tried}; possible sizes: {', '.join(map(str, sizes))}"
    near = sorted({max(1, wanted // processes) * processes, -(-wanted // processes) * processes})
    return (
        f"{tried}, nor by any other size; possible numbers of processes: {', '.join(map(str, _divisors(wanted)))}; "
        f"or optim.effective_batch {' or '.join(map(str, near))}"
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def effective_batch(optim: OptimConfig, processes: int) -> int:
    """Records per update over all processes. UsageError: as `accumulation`."""
    return optim.batch_size * accumulation(optim, processes) * processes


def per_epoch(optim: OptimConfig, records: int, processes: int) -> int:
    """Updates of one pass over so many records."""
    steps = math.ceil(records / (optim.batch_size * processes))
    return max(1, math.ceil(steps / accumulation(optim, processes)))


def in_all(optim: OptimConfig, records: int, processes: int) -> int:
    """Updates of a run."""
    return optim.max_steps if optim.max_steps > 0 else math.ceil(per_epoch(optim, records, processes) * optim.epochs)


def check_warmup(optim: OptimConfig, updates: int) -> None:
    """UsageError: the rate rises to the end of the run; it never reaches `optim.lr`."""
    if optim.schedule != "constant" and 0 < updates <= optim.warmup_steps:
        raise UsageError(
            f"optim.warmup_steps: {optim.warmup_steps} does not end within the run's {updates} updates; "
            f"at most {updates - 1}, or train longer (optim.epochs, optim.max_steps)"
        )
