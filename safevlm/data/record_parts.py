"""A record file, packed into a folder; a JSONL file by several processes at once, each with lines of its own.

The processes are copies of this one, as those of a data loader are: they do nothing but read and write files.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import struct
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from safevlm.data.json_parts import Part, parts_of
from safevlm.data.record_packing import packed_records
from safevlm.data.record_rows import ARROW, PARQUET
from safevlm.taxonomy import Taxonomy

RECORDS, IMAGES, ENDS, ABOUT = "records", "images", "ends", "facts"
NAMES = (RECORDS, IMAGES, ENDS, ABOUT)
BUFFER = 1 << 20
"""Bytes that are written at once."""
END, FACT = struct.Struct("=qq"), struct.Struct("=iiib?q")
"""A row of `ENDS`: where a record ends in `RECORDS`, and its paths in `IMAGES`; and one of `ABOUT`, which is FACTS."""
MOST_PROCESSES = 4
"""More would wait for the disk."""
PART = 32 << 20
"""Bytes of a file from which on a process of its own is worth its start."""

Settings = tuple[Path, Taxonomy, str | Path]
"""Record file, taxonomy, folder of the images."""


class PackedFiles(NamedTuple):
    records: BinaryIO
    images: BinaryIO
    ends: BinaryIO
    facts: BinaryIO


def pack(settings: Settings, files: PackedFiles, part: Part | None = None) -> None:
    """Writes the records, the paths of their images, and a row of each column. RecordError: as `read_records`."""
    records, images, ends, facts = (file.write for file in files)
    at, images_at = 0, 0
    for line, paths, fact in packed_records(*settings, part):
        records(line)
        images(paths)
        at, images_at = at + len(line), images_at + len(paths)
        ends(END.pack(at, images_at))
        facts(FACT.pack(*fact))


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
    with ExitStack() as opened:
        files = [opened.enter_context((folder / name).open("wb", BUFFER)) for name in NAMES]
        pack(settings, PackedFiles(*files), part)


def _join(folders: list[Path], folder: Path) -> None:
    """The parts as one, in order."""
    for name in NAMES:
        folders[0].joinpath(name).rename(folder / name)
    for part in folders[1:]:
        starts = [(folder / name).stat().st_size for name in (RECORDS, IMAGES)]
        with (folder / ENDS).open("ab") as whole:
            (np.fromfile(part / ENDS, "i8").reshape(-1, 2) + starts).tofile(whole)
        for name in (RECORDS, IMAGES, ABOUT):
            with (folder / name).open("ab") as whole, (part / name).open("rb") as more:
                shutil.copyfileobj(more, whole, BUFFER)
            (part / name).unlink()
    for part in folders:
        shutil.rmtree(part)
