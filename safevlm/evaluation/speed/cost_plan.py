"""Time and GPU hours of the large jobs on 1 to 64 GPUs, from what one GPU took.

    seconds = start + units / (rate × GPUs × scaling)

The rate was measured on one card (`cost_constants`). The scaling to several was not: it is an assumption with a range
(`Assumptions`), so a plan for several GPUs is a range too. Prices are the reader's: hours × price.

A training step of a batch takes `floor + record × batch` seconds: launching kernels, then arithmetic. Per step,
gradients of all trained parameters are exchanged as in a ring: 2 × (n - 1) / n × bytes pass each GPU (Patarasuk and
Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", 2009, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from safevlm.evaluation.speed.cost_constants import measured
from safevlm.usage import UsageError

EFFECTIVE_BATCH = 128
"""Of both stages (docs/methods.md §1.4)."""
RISKY, CLEAN_IN_STAGE1, CLEAN = 11_199, 3_000, 81_978
"""The published pool (safevlm/recipes/mix_safevlm.yaml)."""
EPOCHS = 3
RTVLM_QUESTIONS = 4_802
REQUESTS_PER_SECOND = 1_000
BATCH = 16
"""Requests in a batch of the engine: the largest that was measured."""
GRADIENT_BYTES = 2
"""bf16, as the recipes train."""
GIGA = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured: (worst, best)."""

    gpus_per_node: int = 8
    within_node: tuple[float, float] = (100.0, 400.0)
    """GB/s that each GPU sends; NVLink's data sheet says 450 each way on an H200."""
    between_nodes: tuple[float, float] = (10.0, 50.0)
    """GB/s that each GPU sends: 100 and 400 Gbit/s of network a GPU, as cards are sold, less a fifth or nothing."""
    waiting: tuple[float, float] = (1.15, 1.0)
    """A step over that of the mean GPU: all wait for the one with the longest records."""
    sharing: tuple[float, float] = (0.7, 1.0)
    """Of independent processes, each with a GPU and 16 cores of its own: one shared disk, uneven shares."""


@dataclass(frozen=True)
class StageCost:
    """A stage: how long a step is, and what it goes through."""

    floor: float
    """Seconds of a step that do not depend on the batch."""
    record: float
    """Seconds of a record."""
    batch: int
    """Records per step and GPU, at most; fewer where the effective batch leaves fewer."""
    records: int
    parameters: int
    """Trained ones."""


@dataclass(frozen=True)
class Planned:
    """A job on some GPUs. Without an end (serving) `seconds` is that of an hour, and `rate` is what counts."""

    job: str
    gpus: int
    seconds: tuple[float, float]
    """(best, worst)."""
    rate: tuple[float, float]
    """(worst, best) units a second of all GPUs."""
    unit: str
    note: str = ""

    @property
    def gpu_hours(self) -> tuple[float, float]:
        best, worst = self.seconds
        return best * self.gpus / 3600, worst * self.gpus / 3600


@dataclass(frozen=True)
class Workload:
    """What is asked of the plan."""

    images: tuple[int, ...] = (1_000_000, 1_000_000_000)
    """Of the audits."""
    answer_tokens: int = 128
    """Of an answer that is served, or given to RTVLM."""
    judge_tokens: int = 64
    """That a judge of the same shape and prompt writes of each answer."""
    stage2_batch: int = 2
    """Records per step and GPU, as in the recipe; 8 takes 70 GiB."""


def record_seconds() -> float:
    """Of a stage-2 record without the floor: the slope from batch 2 to 8."""
    return (measured("stage 2, batch 8") - measured("stage 2, batch 2")) / 6


def tflops() -> float:
    """TFLOP/s that stage 2 reaches beyond the floor."""
    return measured("stage 2 work, batch 1") / record_seconds()


def trainings(stage2_batch: int) -> dict[str, StageCost]:
    """The stages at the recipes' batch. Stage 1's own slope was not measured: its work at stage 2's rate."""
    stage1_record = measured("stage 1 work, batch 2") / 2 / tflops()
    head_record = (measured("head only, batch 64") - measured("head only, batch 2")) / 62
    stage1_records = RISKY + CLEAN_IN_STAGE1
    stage1_parameters = int(measured("stage 1 parameters"))
    return {
        "stage 1": StageCost(
            measured("stage 1, batch 2") - 2 * stage1_record, stage1_record, 2, stage1_records, stage1_parameters
        ),
        "stage 1, head only": StageCost(
            measured("head only, batch 2") - 2 * head_record, head_record, 16, stage1_records, stage1_parameters
        ),
        "stage 2": StageCost(
            measured("stage 2, batch 2") - 2 * record_seconds(),
            record_seconds(),
            stage2_batch,
            RISKY + CLEAN,
            int(measured("stage 2 parameters")),
        ),
    }


def exchange_seconds(parameters: int, gpus: int, assumed: Assumptions) -> tuple[float, float]:
    """(worst, best) seconds of a step's exchange of gradients."""
    if gpus == 1:
        return 0.0, 0.0
    sent = 2 * (gpus - 1) / gpus * parameters * GRADIENT_BYTES
    slow, fast = assumed.within_node if gpus <= assumed.gpus_per_node else assumed.between_nodes
    return sent / slow / GIGA, sent / fast / GIGA


def plan_training(name: str, job: StageCost, gpus: int, assumed: Assumptions) -> Planned:
    """At best the exchange hides behind the arithmetic; at worst it follows it.

    UsageError: the effective batch cannot be dealt out to so many GPUs.
    """
    if EFFECTIVE_BATCH % gpus:
        raise UsageError(
            f"--gpus {gpus}: the stages' effective batch of {EFFECTIVE_BATCH} is no multiple of it; "
            "leave them out with --jobs rtvlm audit serve"
        )
    batch = min(job.batch, EFFECTIVE_BATCH // gpus)
    step = job.floor + job.record * batch
    slow, fast = exchange_seconds(job.parameters, gpus, assumed)
    waiting = assumed.waiting if gpus > 1 else (1.0, 1.0)
    worst, best = step * waiting[0] + slow, max(step * waiting[1], fast)
    steps = ceil(job.records * EPOCHS / (batch * gpus))
    rate = (batch * gpus / worst, batch * gpus / best)
    return Planned(name, gpus, _ended(steps * best, steps * worst), rate, "records/s", f"batch {batch} a GPU")


def audit_seconds(tower: float, judge: float, read_tower: float) -> float:
    """Of an image, from rates: the tower while it is fed from files, and what the head adds on ready pixels."""
    return 1 / read_tower + 1 / judge - 1 / tower


def answer_seconds(batch: int, way: str, tokens: int) -> float:
    """Of a batch of answers: the first token, then one after the other."""
    return measured(f"first token, {way}, {batch}") + (tokens - 1) * measured(f"token, {way}, {batch}")


def served(tokens: int) -> float:
    """Guarded answers a second of one GPU, in full batches of 16 that begin and end together."""
    return BATCH / answer_seconds(BATCH, "guarded", tokens)


def judged(workload: Workload) -> float:
    """Questions a second of one GPU: the answer, and a judge of the same shape on the same GPU."""
    judge = answer_seconds(BATCH, "plain", workload.judge_tokens) / BATCH
    return 1 / (1 / served(workload.answer_tokens) + judge)


def plan(workload: Workload, gpus: int, jobs: Sequence[str] = (), assumed: Assumptions | None = None) -> list[Planned]:
    """Jobs of `JOBS`, all if none is named, on so many GPUs of the measured kind.

    UsageError: a stage cannot be dealt out to them.
    """
    told = assumed or Assumptions()
    return [planned for job in jobs or JOBS for planned in JOBS[job](workload, gpus, told)]


def _stages(workload: Workload, gpus: int, assumed: Assumptions) -> list[Planned]:
    stages = trainings(workload.stage2_batch).items()
    return [plan_training(name, job, gpus, assumed) for name, job in stages]


def _rtvlm(workload: Workload, gpus: int, assumed: Assumptions) -> list[Planned]:
    calls = f"{RTVLM_QUESTIONS:,} answers, as many judgements"
    return [_independent("RTVLM with a judge", RTVLM_QUESTIONS, judged(workload), "questions/s", gpus, assumed, calls)]


def _audits(workload: Workload, gpus: int, assumed: Assumptions) -> list[Planned]:
    return [
        _independent(f"audit of {images:,} images", images, measured("audit"), "images/s", gpus, assumed)
        for images in workload.images
    ]


def _serving(workload: Workload, gpus: int, assumed: Assumptions) -> list[Planned]:
    """An hour of serving, and how many GPUs hold the load."""
    one = served(workload.answer_tokens)
    most, fewest = (ceil(REQUESTS_PER_SECOND / (one * share)) for share in assumed.sharing)
    note = f"{REQUESTS_PER_SECOND:,} requests/s take {fewest:,} to {most:,} GPUs"
    return [Planned("serving, an hour", gpus, (3600.0, 3600.0), _rates(one, gpus, assumed), "requests/s", note)]


JOBS: dict[str, Callable[[Workload, int, Assumptions], list[Planned]]] = {
    "train": _stages,
    "rtvlm": _rtvlm,
    "audit": _audits,
    "serve": _serving,
}


def _independent(
    name: str, units: int, one: float, unit: str, gpus: int, assumed: Assumptions, note: str = ""
) -> Planned:
    """Processes that never talk to each other."""
    low, high = _rates(one, gpus, assumed)
    return Planned(name, gpus, _ended(units / high, units / low), (low, high), unit, note)


def _rates(one: float, gpus: int, assumed: Assumptions) -> tuple[float, float]:
    worst, best = assumed.sharing if gpus > 1 else (1.0, 1.0)
    return one * gpus * worst, one * gpus * best


def _ended(best: float, worst: float) -> tuple[float, float]:
    """With the start of a process in front."""
    return measured("start") + best, measured("start") + worst
