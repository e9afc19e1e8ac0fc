"""SafeCLIP's correction in fine-tuning: what is asked about a risky image is answered with a refusal that fits it.

Before training, the model's own tower looks once at every image of the records, and a concept bank says what it is
(`safevlm.defenses.safe_clip`). Records need no labels, and keep those they have. It works on messages, before they are
cut into tokens, so no label can slip. The trap: a batch's composition moves the last bits of a probability, so batches
do not depend on the number of processes; each process takes whole ones, and all of them get all findings.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from transformers import TrainingArguments

from safevlm.config import Recipe
from safevlm.data import chat_messages
from safevlm.data.record_facts import fact
from safevlm.data.record_table import RecordTable, image_paths
from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.defenses.bank import read_bank
from safevlm.defenses.safe_clip import ConceptMatch, SafeClipDetector, check_bank
from safevlm.engine.setting import facts_of
from safevlm.model import loading
from safevlm.sharding import Share
from safevlm.training.image_passes import image_passes, looking_model

BATCH = 64
"""Images per forward."""

Matches = dict[Path, ConceptMatch]


def relabel(
    records: Sequence[Record], recipe: Recipe, loaded: loading.Loaded, arguments: TrainingArguments
) -> tuple[Sequence[Record], dict[str, int]]:
    """The records, corrected by the bank `data.relabel`, and how many were, by concept. All processes must call.

    Every answer of a record with a risky image becomes the refusal of the image's category.
    """
    vision_model = looking_model(recipe, loaded, arguments.device)
    taxonomy = vision_model.safe_llava.config.taxonomy
    bank = read_bank(recipe.data.relabel, taxonomy)
    check_bank(bank, facts_of(vision_model, arguments.device), recipe.data.relabel)
    detector = SafeClipDetector(bank.to(arguments.device), taxonomy)
    images = sorted({Path(path) for paths in image_paths(records) for path in paths})
    found = _shared(_matches(detector, vision_model, images, arguments), arguments.world_size)
    refusals: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for row, paths in enumerate(image_paths(records)):
        finding = detector.gravest([found[Path(path)] for path in paths]) if paths else None
        if finding and finding.is_risky:
            counts[finding.concept.name] += 1
            refusals[row] = prompts.refusal(taxonomy, finding.concept.category)
    return _corrected(records, refusals), dict(sorted(counts.items()))


def _corrected(records: Sequence[Record], refusals: Mapping[int, str]) -> Sequence[Record]:
    """The records, those of the rows in `refusals` answered anew."""
    if not isinstance(records, RecordTable):
        return [_answered(record, refusals.get(row)) for row, record in enumerate(records)]
    by_place = {records[row].place: refusal for row, refusal in refusals.items()}
    facts = records.facts.copy()
    for row, refusal in refusals.items():
        facts[row] = fact(_answered(records[row], refusal))
    return records.changed(partial(_answered_by_place, refusals=by_place), facts)


def _answered_by_place(record: Record, refusals: Mapping[str, str]) -> Record:
    return _answered(record, refusals.get(record.place))


def _matches(
    detector: SafeClipDetector, vision_model: loading.Loaded, paths: Sequence[Path], arguments: TrainingArguments
) -> Matches:
    """What this process's share of the images was taken for."""
    found: Matches = {}
    own = _share(paths, arguments)
    for batch, vision in image_passes(vision_model, own, arguments.device, BATCH, "looking for what to relabel"):
        with torch.inference_mode():
            found |= zip(batch, detector.look(vision), strict=True)
    return found


def _share(images: Sequence[Path], arguments: TrainingArguments) -> list[Path]:
    """Whole batches: only the last one of all may be smaller."""
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return [path for batch in Share(arguments.process_index, arguments.world_size).of(batches) for path in batch]


def _shared(own: Matches, processes: int) -> Matches:
    """The findings of all processes."""
    if processes == 1:
        return own
    parts: list[Matches] = [{} for _ in range(processes)]
    torch.distributed.all_gather_object(parts, own)
    return {path: finding for part in parts for path, finding in part.items()}


def _answered(record: Record, refusal: str | None) -> Record:
    """None: as it is."""
    if refusal is None:
        return record
    messages = tuple(
        chat_messages.assistant(refusal) if message["role"] == "assistant" else message for message in record.messages
    )
    return dataclasses.replace(record, messages=messages)
