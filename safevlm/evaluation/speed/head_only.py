"""What kept features save a head-only stage 1: whole runs, from the start to the saved head, side by side.

| way         | what it is                                                                                        |
|-------------|---------------------------------------------------------------------------------------------------|
| plain       | the batches that the LLM would read, and every image through the frozen tower in every epoch      |
| uncached    | batches for the head alone; every image through the tower in every epoch                          |
| cached      | batches for the head alone; every image through the tower once, in a folder that was empty        |
| cached again | the same with what the run before left there                                                    |

Ways take turns within a round, and who goes first rotates. CPU seconds count less of a busy machine than the wall's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from safevlm.config import Recipe
from safevlm.data.collate import Collator, RecordDataset
from safevlm.data.made_by import digest_of_files, write_result
from safevlm.data.records import Record
from safevlm.evaluation.speed.gpu_check import timing
from safevlm.model import loading
from safevlm.model.checkpoint_folder import SAFETY_FILE
from safevlm.training.longest import longest
from safevlm.training.recipe import parse
from safevlm.training.run import train
from safevlm.training.stages import STAGE1
from safevlm.training.trainer import SafeTrainer

FILE = "train.json"
PLAIN = "plain"
CLOCKS = {"cpu_seconds": time.process_time, "wall_seconds": time.perf_counter}


def _plain_trainer(recipe: Recipe, loaded: loading.Loaded, records: Sequence[Record], **options: Any) -> SafeTrainer:
    return SafeTrainer(
        loaded=loaded,
        train_dataset=RecordDataset(records),
        data_collator=Collator(loaded.processor, longest(recipe, loaded.safe_llava.config)),
        **options,
    )


WITH_PROMPTS = dataclasses.replace(STAGE1, trainer=_plain_trainer)
"""Stage 1 whose batches are those for the LLM."""


def head_only(
    recipe: str, model: str | Path, data: str | Path, out: str | Path, *, epochs: float = 5, rounds: int = 5
) -> dict[str, Any]:
    """Measures, and writes `OUT/train.json`. `recipe`: of a head-only stage 1. UsageError: it is none, or broken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            ways = _ways(recipe, model, data, Path(folder), epochs)
            seconds, digests = _measured(ways, rounds)
    finally:
        torch.set_num_threads(threads)
    table = {
        "recipe": recipe,
        "model": str(model),
        "epochs": epochs,
        "over": PLAIN,
        "ways": {name: _row(name, seconds) | {"same_head": digests[name] == digests[PLAIN]} for name in ways},
    }
    write_result(Path(out) / FILE, table, {"model": model, "data": data})
    return table


def told(table: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    for name, row in table["ways"].items():
        cpu, wall = (row["times_faster"][clock] for clock in CLOCKS)
        faster = f"{cpu['value']:.2f} x [{cpu['low']:.2f}, {cpu['high']:.2f}] as fast as {table['over']}, n {cpu['n']}"
        wall_told = f"by the wall {row['wall_seconds']:.1f} s, {wall['value']:.2f} x"
        head = "the same head to the bit" if row["same_head"] else "another head"
        yield f"{name}: {row['cpu_seconds']:.1f} CPU seconds, {faster}; {wall_told}; {head}"


def _ways(recipe: str, model: str | Path, data: str | Path, folder: Path, epochs: float) -> dict[str, Recipe]:
    words = [recipe, "--model.path", str(model), "--data.train", f"[{data}]", "--optim.epochs", str(epochs)]
    words += ["--optim.max_steps", "-1", "--run.resume", "false", "--run.save_steps", "1000000"]
    uncached = ["--data.feature_cache", "", "--data.feature_cache_gb", "0"]
    cached = ["--data.feature_cache", str(folder / "features")]
    flags = {
        PLAIN: ["--stage", f"{__name__}:WITH_PROMPTS", *uncached],
        "uncached": uncached,
        "cached": cached,
        "cached again": cached,
    }
    return {name: parse([*words, "--run.out", str(folder / name), *own]) for name, own in flags.items()}


def _measured(ways: Mapping[str, Recipe], rounds: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Seconds by clock and way, and digests of the heads of the last round."""
    pairs = [[PLAIN], ["uncached"], ["cached", "cached again"]]  # the last two in this order
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in ways} for clock in CLOCKS}
    digests: dict[str, str] = {}
    _warm_up(ways[PLAIN])
    for turn in range(rounds):
        shift = turn % len(pairs)
        for names in (*pairs[shift:], *pairs[:shift]):
            for name in names:
                started = {clock: read() for clock, read in CLOCKS.items()}
                final = train(ways[name])
                for clock, read in CLOCKS.items():
                    seconds[clock][name].append(read() - started[clock])
                digests[name] = digest_of_files([final / SAFETY_FILE])
        _empty(Path(ways["cached"].data.feature_cache))
    return seconds, digests


def _warm_up(recipe: Recipe) -> None:
    """A run of two updates, so that nobody pays for imports."""
    optim = dataclasses.replace(recipe.optim, max_steps=2, warmup_steps=0)
    train(dataclasses.replace(recipe, optim=optim))


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _row(name: str, seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    return {clock: median(found[name]) for clock, found in seconds.items()} | {
        "times_faster": {
            clock: timing.told([theirs / mine for mine, theirs in zip(found[name], found[PLAIN], strict=True)])
            for clock, found in seconds.items()
        }
    }
