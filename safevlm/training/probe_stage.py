"""The stage that trains a probe: the frozen LLM reads every record's question once, a small network learns from that.

The states are those that the engine hands to the defense: the user's own words and images, no hint and no answer. They
stay in memory, records x layers x tokens x d x 4 bytes (3.3 GB for 50,000 records, one layer and four tokens of a 7B
LLM), so that an epoch costs nothing beside the reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from safevlm.backbones import config_facts
from safevlm.config import LossWeights, OptimConfig, Recipe
from safevlm.data.collate import IGNORED
from safevlm.data.record_facts import NONE, facts_of
from safevlm.data.record_table import choose
from safevlm.data.records import Record, RecordError
from safevlm.defenses import probe_file
from safevlm.defenses.probe_file import Probe, StoredProbe
from safevlm.engine.encoder import Encoder
from safevlm.engine.setting import facts_of as model_facts
from safevlm.training import updates
from safevlm.training.stage import StageRun
from safevlm.types import Request


@dataclass(frozen=True)
class ProbeLesson:
    """What a probe learns from: n records."""

    states: Tensor
    """(n, l, k, d)."""
    level: Tensor
    """(n,), `IGNORED` where a record has none."""
    category: Tensor
    """(n,), likewise."""


def fit(run: StageRun) -> None:
    """Reads, trains and writes `probe.safetensors`. RecordError: a record that the LLM cannot read."""
    recipe, model = run.recipe, run.loaded.safe_llava
    layers = layers_of(recipe, config_facts.lm_layers(model.config))
    records = choose(run.records, np.flatnonzero(_teach(run.records, recipe)))
    lesson = ProbeLesson(
        _read(run, records, layers),
        torch.tensor([_label(record.safe_level) for record in records]),
        torch.tensor([_label(record.safe_type) for record in records]),
    )
    taxonomy = model.config.taxonomy
    levels, categories = tuple(taxonomy.level_names), tuple(taxonomy.category_names)
    torch.manual_seed(recipe.run.seed)
    states = len(layers) * recipe.probe.tokens
    probe = Probe(states, lesson.states.shape[-1], recipe.probe.hidden, len(levels), len(categories))
    loss = learn(probe, lesson, recipe.optim, recipe.loss, recipe.run.seed)
    facts = model_facts(run.loaded, run.device)
    about = {"base": str(run.loaded.path), "records": len(records), "loss": loss}
    stored = StoredProbe(
        probe,
        layers,
        recipe.probe.tokens,
        recipe.probe.words,
        levels,
        categories,
        about,
        {**facts.base, **facts.lm_tokens},
    )
    probe_file.write(run.folder / probe_file.FILE, stored)


def layers_of(recipe: Recipe, depth: int) -> tuple[int, ...]:
    """What the recipe names, or the one behind the middle. ValueError: the LLM has no such layer."""
    wanted = tuple(recipe.probe.layers) or (depth // 2 + 1,)
    if max(wanted) > depth:
        raise ValueError(f"probe.layers: {max(wanted)}; this checkpoint's LLM has {depth} layers")
    return wanted


def check_records(records: Sequence[Record], recipe: Recipe) -> Mapping[str, Any]:
    """RecordError: no label to learn from, or labels of one kind alone."""
    facts = facts_of(records)
    kinds = {"images": facts["images"] > 0} | ({"words alone": facts["images"] == 0} if recipe.probe.words else {})
    teaching = _teach(records, recipe)
    for kind, mine in kinds.items():
        levels, types = (facts[column][mine & teaching] for column in ("safe_level", "safe_type"))
        if all(len(set(column.tolist()) - {NONE}) < 2 for column in (levels, types)):
            raise RecordError(
                f"{', '.join(recipe.data.train)}: records with {kind} have no two different labels (safe_level or "
                "safe_type), and a probe needs clean and risky ones"
            )
    return {"probe": int(teaching.sum())}


def learn(probe: Probe, lesson: ProbeLesson, optim: OptimConfig, weights: LossWeights, seed: int) -> float:
    """Trains the probe in place, on the CPU; the mean loss of the last epoch, weighted as the recipe says.

    FloatingPointError: it is not finite.
    """
    count, size = len(lesson.states), updates.effective_batch(optim, 1)
    steps = optim.max_steps if optim.max_steps > 0 else math.ceil(math.ceil(count / size) * optim.epochs)
    updates.check_warmup(optim, steps)
    descent = torch.optim.AdamW(probe.parameters(), optim.lr, weight_decay=optim.weight_decay)
    schedule = get_scheduler(optim.schedule, descent, optim.warmup_steps, steps)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    losses: list[float] = []
    for _ in tqdm(range(steps), "probe", leave=False):
        if not len(order):
            order, losses = torch.randperm(count, generator=generator), []
        rows, order = order[:size], order[size:]
        logits = probe(lesson.states[rows])
        loss = weights.level * _cross_entropy(logits.level, lesson.level[rows])
        loss = loss + weights.category * _cross_entropy(logits.category, lesson.category[rows])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the probe's loss is {loss.item()}; lower optim.lr")
        descent.zero_grad()
        loss.backward()
        if optim.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(probe.parameters(), optim.max_grad_norm)
        descent.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """A mean over the rows that have a label; 0 where none has."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _teach(records: Sequence[Record], recipe: Recipe) -> Any:
    """(n,), bool: which records have a label that counts."""
    facts = facts_of(records)
    weights = ((recipe.loss.level, "safe_level"), (recipe.loss.category, "safe_type"))
    labelled = np.any([(facts[column] != NONE) & bool(weight) for weight, column in weights], axis=0)
    return labelled & ((facts["images"] > 0) | recipe.probe.words)


@torch.inference_mode()
def _read(run: StageRun, records: Sequence[Record], layers: tuple[int, ...]) -> Tensor:
    """(n, l, k, d) of the last question of every record."""
    encoder, size = Encoder(run.loaded, run.device), run.recipe.optim.batch_size
    found = []
    for start in tqdm(range(0, len(records), size), "reading", leave=False):
        batch = records[start : start + size]
        requests = [request_of(record) for record in batch]
        features = encoder.features(requests)
        for record, prompt in zip(batch, encoder.prompts(requests, features), strict=True):
            if isinstance(prompt, Exception):
                raise RecordError(f"{record.place}: {prompt}")
        found.append(encoder.states(requests, features, layers, run.recipe.probe.tokens).cpu())
    return torch.cat(found).clone()


def request_of(record: Record) -> Request:
    """A record as it is asked: its turns up to the last question."""
    said = [(message["role"], _text(message), _images(message)) for message in record.messages]
    system = next((text for role, text, _ in said if role == "system"), "")
    questions = [(text, images) for role, text, images in said if role == "user"]
    answers = [text for role, text, _ in said if role == "assistant"]
    history = [(text, answer) for (text, _), answer in zip(questions[:-1], answers, strict=False)]
    counts = [images for _, images in questions]
    return Request(questions[-1][0], record.images, record.id, history, system, counts)


def _text(message: Any) -> str:
    return next((part["text"] for part in message["content"] if part["type"] == "text"), "")


def _images(message: Any) -> int:
    return sum(part["type"] == "image" for part in message["content"])


def _label(label: int | None) -> int:
    return IGNORED if label is None else label
