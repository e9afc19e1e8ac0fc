"""A recipe and where it is to run, and what the checks of it share: checkpoint, shapes, processor, records, samples."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava_patch.classes import Processor
from safevlm.check import checkpoint, model, samples, zero
from safevlm.check.checkpoint import Checkpoint
from safevlm.check.lazy_parts import Skipped, lazy_part, one_line
from safevlm.check.samples import Sampled
from safevlm.config import Recipe
from safevlm.data import packed_images
from safevlm.data.images import open_image
from safevlm.data.json_rows import RowError
from safevlm.data.mix import draw_clean
from safevlm.data.pressure import add_pressure
from safevlm.data.record_rows import record_rows
from safevlm.data.records import Record, parse_record
from safevlm.data.threads import in_threads
from safevlm.taxonomy import Taxonomy
from safevlm.training import updates
from safevlm.training.arguments import deepspeed_file
from safevlm.training.hints import add_hints
from safevlm.training.longest import longest
from safevlm.training.prepare import prepare
from safevlm.training.stage import Stage
from safevlm.training.stages import stage_of

SAMPLE = 256
"""Records that are encoded; all, when there are fewer."""
IMAGES = 2000
"""Records whose images are decoded; `safevlm check DATA` opens all of them."""
DEFAULT_GPU = 80.0
"""GiB, when no GPU is seen and none is named: an A100 or H100 of 80 GB."""


@dataclass(frozen=True)
class Cluster:
    """Where the run is to happen."""

    gpus: int = 0
    """Per node; 0: those that torch sees here, at least one process."""
    nodes: int = 1
    gpu_memory: float | None = None
    """GiB; none: the smallest GPU seen here."""

    @property
    def processes(self) -> int:
        return max(1, self.gpus or torch.cuda.device_count()) * self.nodes

    def memory(self) -> tuple[float, str]:
        """GiB per GPU, and where the number is from."""
        if self.gpu_memory is not None:
            return self.gpu_memory, "--gpu-memory"
        seen = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        return (min(seen) / 2**30, "the smallest GPU here") if seen else (DEFAULT_GPU, "assumed; say --gpu-memory GiB")


@dataclass
class RunPlan:
    recipe: Recipe
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def stage(self) -> Stage:
        return stage_of(self.recipe)

    @lazy_part
    def accumulation(self) -> int:
        """Steps per update on these processes."""
        return updates.accumulation(self.recipe.optim, self.cluster.processes)

    @lazy_part
    def checkpoint(self) -> Checkpoint:
        return checkpoint.read(self.recipe.model)

    @lazy_part
    def taxonomy(self) -> Taxonomy:
        return self.checkpoint.config.taxonomy

    @lazy_part
    def skeleton(self) -> Any:
        """The whole model on the meta device, without the LLM's layers where they are never loaded."""
        return checkpoint.skeleton(self.checkpoint.config, layers=None if self.recipe.loss.lm else 0)

    @lazy_part
    def trained_model(self) -> Any:
        """What `prepare` makes of the skeleton: frozen and unfrozen, with the LoRA."""
        with torch.device("meta"):
            return prepare(self.skeleton, self.stage, self.recipe)

    @lazy_part
    def processor(self) -> Processor:
        return model.fitting_processor(self.checkpoint, self.skeleton.slots)

    @lazy_part
    def deepspeed_file(self) -> dict[str, Any] | None:
        file = deepspeed_file(self.recipe.run.deepspeed)
        return zero.read(file) if file else None

    @lazy_part
    def rows(self) -> tuple[list[Record], list[str]]:
        """All records that can be used, and what is wrong with the others."""
        records: list[Record] = []
        problems: list[str] = []
        if not os.path.isdir(self.recipe.data.images or "."):
            raise Skipped("needs data.images, see above")
        for file in filter(os.path.isfile, self.recipe.data.train):  # another check names those that are not there
            try:
                self._read(Path(file), records, problems)
            except RowError as error:
                problems.append(one_line(error))
        return records, problems

    def _read(self, file: Path, records: list[Record], problems: list[str]) -> None:
        images = Path(self.recipe.data.images) if self.recipe.data.images else file.parent
        packed = packed_images.folder_of(file)
        for place, raw in tqdm(record_rows(file), f"reading {file.name}", unit=" records", leave=False):
            try:
                records.append(parse_record(raw, place, self.taxonomy, images, packed))
            except ValueError as error:
                problems.append(one_line(error))

    @lazy_part
    def records(self) -> Sequence[Record]:
        """What the run would see: the clean draw made, hints added, complete for the stage."""
        data = self.recipe.data
        records = draw_clean(self.rows[0], self.taxonomy, data.clean, self.recipe.run.seed)
        if not records and (self.rows[1] or not all(map(os.path.isfile, data.train))):
            raise Skipped("needs a record that can be used, see above")
        if not records:
            raise ValueError(f"{', '.join(data.train)}: no records")
        if not self.rows[1]:
            self.stage.check_records(records, self.recipe)
        records = add_pressure(records, self.taxonomy, data.pressure, self.recipe.run.seed)
        return add_hints(records, self.taxonomy) if data.hints else records

    @lazy_part
    def unreadable(self) -> tuple[list[str], int]:
        """What is wrong with images of a seeded sample of records, and how many records were looked at."""
        chosen = [record for record in self.records if record.images]
        if len(chosen) > IMAGES:
            chosen = random.Random(self.recipe.run.seed).sample(chosen, IMAGES)
        looked = in_threads(_unreadable, chosen, "opening images", len(chosen))
        return [problem for found in looked for problem in found], len(chosen)

    @lazy_part
    def sample(self) -> Sampled:
        """Some of the records as the model would see them, and what is wrong with others."""
        chosen = self.records
        if len(chosen) > SAMPLE:
            chosen = random.Random(self.recipe.run.seed).sample(chosen, SAMPLE)
        return samples.encode(chosen, self.processor, self.skeleton.slots, self.longest)

    @property
    def longest(self) -> int:
        """Tokens after which a record is cut."""
        return longest(self.recipe, self.checkpoint.config)


def _unreadable(record: Record) -> list[str]:
    problems = []
    for path in record.images:
        try:
            open_image(path)
        except ValueError as error:
            problems.append(f"{record.place}: {one_line(error)}")
    return problems
