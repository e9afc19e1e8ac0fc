"""How often the detector errs, from images whose labels are known: rows of JSON or JSONL with `image` and
`safe_type` (or `category`), an id or a name, as training records have them.

The images must be none that the head was trained on: its errors there are rarer than anywhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from safevlm.analysis.audit.images import read_ahead
from safevlm.analysis.audit.plan import PlacedItem
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.scan import judge
from safevlm.analysis.audit.sources import Item, inside
from safevlm.analysis.audit.verdicts import Rule
from safevlm.data.json_rows import json_rows
from safevlm.taxonomy import Taxonomy

LABELS = ("safe_type", "category")


def confusion(file: Path, classifier: RiskClassifier, rule: Rule, *, batch_size: int, workers: int) -> np.ndarray:
    """(k, k) counts, rows reported, columns true. ValueError: no labels, an unknown one, an image that is broken."""
    truths: deque[int] = deque()  # one of each image on its way

    def items() -> Iterator[PlacedItem]:
        for truth, item in labelled(file, classifier.taxonomy):
            truths.append(truth)
            yield PlacedItem(item.position, 0, item)

    size = len(classifier.taxonomy.category_names)
    table = np.zeros((size, size), np.int64)
    images = read_ahead(items(), classifier.processor, workers)
    for rows in judge(classifier, images, batch_size):
        for row in rows:
            if row.image.error:
                raise ValueError(f"{file}: {row.image.placed.item.path}: {row.image.error}")
            reported = rule(np.array([row.category]), np.array([row.level])).category[0]
            table[reported, truths.popleft()] += 1
    if not table.any():
        raise ValueError(f"{file}: no row with an image and a label {' or '.join(LABELS)}")
    return table


def labelled(file: Path, taxonomy: Taxonomy) -> Iterator[tuple[int, Item]]:
    """(true category, image) of every row that has one image and a label; paths start from the file's folder."""
    for position, (place, row) in enumerate(json_rows(file)):
        image = row.get("image") if isinstance(row, dict) else None
        label = next((row[name] for name in LABELS if row.get(name) is not None), None) if image else None
        if not isinstance(image, str) or label is None:
            continue
        try:
            truth = taxonomy.category_id(label)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        path, problem = inside(file.parent, image)
        yield truth, Item(position, image, file=path, error=problem)
