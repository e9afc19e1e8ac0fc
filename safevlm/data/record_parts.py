"""A record file, packed into a folder; a JSONL file by several processes at once, each with lines of its own.

The processes are copies of this one, as those of a data loader are: they do nothing but read and write files.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
from array import array
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from safevlm.data.json_parts import Part, parts_of
from safevlm.data.record_facts import FACTS, Facts
from safevlm.data.record_packing import packed_records
from safevlm.data.record_rows import ARROW, PARQUET
from safevlm.taxonomy import Taxonomy

RECORDS, IMAGES, ENDS, ABOUT = "records", "images", "ends.npy", "facts.npy"
ROWS = 4096
"""Rows of facts that stand in memory as Python numbers."""
MOST_PROCESSES = 4
"""More would wait for the disk."""
PART = 32 << 20
"""Bytes of a file from which on a process of its own is worth its start."""

Settings = tuple[Path, Taxonomy, str | Path]
"""Record file, taxonomy, folder of the images."""
Columns = tuple[NDArray[Any], Facts]
"""(n, 2): where each record ends in `records`, and its paths in `images`; (n,) of FACTS."""


def pack(settings: Settings, records: BinaryIO, images: BinaryIO, part: Part | None = None) -> Columns:
    """Writes the records, and the paths of their images. RecordError: as `read_records`."""
    ends = array("q")
    blocks: list[Facts] = []
    facts: list[tuple[Any, ...]] = []
    at, images_at = 0, 0
    for line, paths, fact in packed_records(*settings, part):
        at += records.write(line)
        images_at += images.write(paths)
        ends.append(at)
        ends.append(images_at)
        facts.append(fact)
        if len(facts) == ROWS:
            blocks.append(np.array(facts, FACTS))
            facts = []
    blocks.append(np.array(facts, FACTS))
    return np.array(ends, "i8").reshape(-1, 2), np.concatenate(blocks)


def pack_into(folder: Path, settings: Settings) -> None:
    """Fills a folder: `RECORDS`, `IMAGES`, `ENDS`, `ABOUT`. RecordError: as `read_records`, the first one."""
    parts = _parts(settings[0])
    if len(parts) < 2:
        _pack_part(folder, settings, *parts)
        return
    folders = [folder / str(number) for number in range(len(parts))]
    try:
        with ProcessPoolExecutor(len(parts), multiprocessing.get_context("fork"), gc.disable) as pool:
            jobs = [pool.submit(_pack_part, *job) for job in zip(folders, [settings] * len(parts), parts, strict=True)]
            for job in jobs:
                job.result()
    except BrokenProcessPool:  # one was killed, most likely for memory
        for one in folders:
            shutil.rmtree(one, ignore_errors=True)
        _pack_part(folder, settings)
    else:
        _join(folders, folder)


def processes() -> int:
    """How many may work at once: the cores that this process may use, over its share of a machine's ranks."""
    if "fork" not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(MOST_PROCESSES, cores // int(ranks) if ranks.isdecimal() and int(ranks) else cores))


def _parts(file: Path) -> list[Part]:
    count = max(1, min(processes(), file.stat().st_size // PART))
    return [] if file.suffix.lower() in (PARQUET, ARROW) else parts_of(file, count)


def _pack_part(folder: Path, settings: Settings, part: Part | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / RECORDS).open("wb") as records, (folder / IMAGES).open("wb") as images:
        ends, facts = pack(settings, records, images, part)
    np.save(folder / ENDS, ends)
    np.save(folder / ABOUT, facts)


def _join(folders: list[Path], folder: Path) -> None:
    """The parts as one, in order."""
    for name in (RECORDS, IMAGES):
        folders[0].joinpath(name).rename(folder / name)
        with (folder / name).open("ab") as whole:
            for part in folders[1:]:
                with (part / name).open("rb") as more:
                    shutil.copyfileobj(more, whole, 1 << 20)
                (part / name).unlink()
    ends = [np.load(part / ENDS) for part in folders]
    starts = np.cumsum([np.zeros(2, "i8"), *(one[-1] if len(one) else np.zeros(2, "i8") for one in ends[:-1])], axis=0)
    np.save(folder / ENDS, np.concatenate([one + start for one, start in zip(ends, starts, strict=True)]))
    np.save(folder / ABOUT, np.concatenate([np.load(part / ABOUT) for part in folders]))
    for part in folders:
        shutil.rmtree(part)
