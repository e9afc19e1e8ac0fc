"""The long half: every shard of this process that is not on disk yet is scanned and written.

Batches are cut within a shard from the images that can be read, in order, so a shard is the same whoever makes it and
however often it was interrupted before. Threads decode ahead while the model works; what is in memory does not depend
on how many images there are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from safevlm.analysis.audit.images import ReadImage, read_ahead
from safevlm.analysis.audit.plan import ShardPlan
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.shards import Shards, ShardVerdicts
from safevlm.analysis.audit.verdicts import gravity
from safevlm.sharding import Share

FRAMES_AT_ONCE = 16
"""Of one animation, after its first frame, which is judged with those of other images."""
Row = tuple[np.ndarray, np.ndarray]
"""Probabilities of the categories and of the levels."""


def scan(
    plan: ShardPlan, shards: Shards, classifier: RiskClassifier, share: Share, *, batch_size: int, workers: int
) -> int:
    """Writes the missing shards of this process; returns how many images it read for them."""
    mine = {shard for shard in shards.missing(plan.shards) if share.owns(shard)}
    total = plan.images_of(mine)
    images = read_ahead(plan.items(mine), classifier.processor, workers)
    with tqdm(desc="auditing", total=total, unit=" images", disable=not total) as bar:
        for shard, found in itertools.groupby(images, lambda image: image.placed.shard):
            rows: list[ShardVerdicts] = []
            for judged in judge(classifier, found, batch_size):
                rows += judged
                bar.update(len(judged))
            shards.write(shard, rows)
    return total


def judge(classifier: RiskClassifier, images: Iterator[ReadImage], batch_size: int) -> Iterator[list[ShardVerdicts]]:
    """Images with their probabilities, in order; a batch is full when it has `batch_size` readable ones."""
    waiting: list[ReadImage] = []
    readable = 0
    for image in images:
        waiting.append(image)
        readable += image.pixels is not None
        if readable == batch_size:
            yield _judged(classifier, waiting)
            waiting, readable = [], 0
    if waiting:
        yield _judged(classifier, waiting)


def _judged(classifier: RiskClassifier, images: Sequence[ReadImage]) -> list[ShardVerdicts]:
    pixels = [image.pixels for image in images if image.pixels is not None]
    rows = iter(zip(*classifier.judge(pixels), strict=True)) if pixels else iter(())
    return [_row(classifier, image, rows) for image in images]


def _row(classifier: RiskClassifier, image: ReadImage, rows: Iterator[Row]) -> ShardVerdicts:
    if image.pixels is None:
        return ShardVerdicts(image)
    found = [next(rows)]
    for start in range(0, len(image.later), FRAMES_AT_ONCE):
        found += zip(*classifier.judge(image.later[start : start + FRAMES_AT_ONCE]), strict=True)
    gravest = max(range(len(found)), key=lambda frame: gravity(*found[frame], classifier.taxonomy))
    category, level = found[gravest]
    # a shard is written when it is complete; the pixels of a whole shard would be gigabytes
    return ShardVerdicts(
        dataclasses.replace(image, pixels=None, later=()), category.tolist(), level.tolist(), gravest + 1
    )
