"""Clocks of the check: several ways of doing one thing, in rounds, and the ratio of each to the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from safevlm.intervals import Interval, bootstrap_median
from safevlm.training.bench import wait

Work = Callable[[], object]


class Clock:
    """Runs from when it is made, the device being idle then; reading it waits until the device is idle again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        wait(device)
        self._started = time.perf_counter()

    def seconds(self) -> float:
        wait(self._device)
        return time.perf_counter() - self._started


def seconds_of(work: Work, device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    clock = Clock(device)
    work()
    return clock.seconds()


def repeated(work: Work, device: torch.device, rounds: int, warm_up: int = 2) -> list[float]:
    """Seconds of `rounds` calls after some that are not counted."""
    return [seconds_of(work, device) for _ in range(warm_up + rounds)][warm_up:]


def in_rounds(ways: Mapping[str, Work], device: torch.device, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in every round. Who goes first rotates, so that nobody gains from what another warmed."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            seconds = seconds_of(ways[name], device)
            if turn >= 0:
                found[name].append(seconds)
    return found


def told(values: Sequence[float]) -> dict[str, float | int | None]:
    """Median with its 95 % bootstrap interval."""
    return Interval(median(values), len(values), *bootstrap_median(values, seed=0)).to_dict()


def over(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Per way: its median, and the median of its ratios to `base` within a round, each with a 95 % interval."""
    return {
        name: {
            "seconds": median(own),
            "ratio": told([mine / theirs for mine, theirs in zip(own, seconds[base], strict=True)]),
        }
        for name, own in seconds.items()
    }
