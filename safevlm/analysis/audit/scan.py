"""The long half: every shard of this process that has no part yet is looked at and written.

Batches are cut within a shard from the pictures that can be read, in order, so a part is the same whoever makes it and
however often it was interrupted before. Threads decode ahead while the model works; what is in memory does not depend
on how many pictures there are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from safevlm.analysis.audit.eye import Eye
from safevlm.analysis.audit.parts import Judged, Parts
from safevlm.analysis.audit.pictures import Picture, read_ahead
from safevlm.analysis.audit.plan import Plan, Share


def scan(plan: Plan, parts: Parts, eye: Eye, share: Share, *, batch_size: int, workers: int) -> int:
    """Makes the parts of this process that are missing; returns how many pictures it looked at."""
    mine = {shard for shard in parts.missing(plan.shards) if share.owns(shard)}
    total = plan.pictures_of(mine)
    pictures = read_ahead(plan.items(mine), eye.processor.image_processor, workers)
    with tqdm(desc="auditing", total=total, unit=" pictures", disable=not total) as bar:
        for shard, found in itertools.groupby(pictures, lambda picture: picture.placed.shard):
            rows: list[Judged] = []
            for judged in judge(eye, found, batch_size):
                rows += judged
                bar.update(len(judged))
            parts.write(shard, rows)
    return total


def judge(eye: Eye, pictures: Iterator[Picture], batch_size: int) -> Iterator[list[Judged]]:
    """Pictures with their probabilities, in order; a batch is full when it has `batch_size` readable ones."""
    waiting: list[Picture] = []
    readable = 0
    for picture in pictures:
        waiting.append(picture)
        readable += picture.pixels is not None
        if readable == batch_size:
            yield _judged(eye, waiting)
            waiting, readable = [], 0
    if waiting:
        yield _judged(eye, waiting)


def _judged(eye: Eye, pictures: Sequence[Picture]) -> list[Judged]:
    pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
    rows = iter(zip(*eye.judge(pixels), strict=True)) if pixels else iter(())
    return [_row(picture, rows) for picture in pictures]


def _row(picture: Picture, rows: Iterator[Sequence[Sequence[float]]]) -> Judged:
    if picture.pixels is None:
        return Judged(picture)
    category, level = next(rows)
    # a part is written when its shard is done; the pixels of a whole shard would be gigabytes
    return Judged(dataclasses.replace(picture, pixels=None), category, level)
