"""The LLM's head computes the logits that the loss reads, and no others; loss and gradients are those of all logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from safevlm.config import LossWeights
from safevlm.data.collate import IGNORED, Collator, columns_before_labels
from safevlm.data.records import read_records
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training import trainer
from safevlm.training.run import train
from safevlm.training.trainer import SafeTrainer
from tests.backbones import families
from tests.training import workshop

KEY = "logits_to_keep"
RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""How far two gradients may be apart."""


class AllLogits(workshop.WatchedTrainer):
    """Asks for the logits of every position."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        kept = {name: value for name, value in inputs.items() if name != KEY}
        return super().compute_loss(model, kept, *rest, **named)


class FirstGradients(TrainerCallback):
    """Those of the first update, once all its micro-batches were read."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = self.found or gradients(kwargs["model"])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@contextmanager
def positions_of_head(model: Any) -> Iterator[list[int]]:
    """At how many positions the LLM's head is asked, at each of its calls."""
    asked: list[int] = []
    watched = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: asked.append(given[0].shape[1])
    )
    try:
        yield asked
    finally:
        watched.remove()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data"))
    train(workshop.recipe(home / "base", home / "data" / "mixed.jsonl", home / "stage1"))
    return home


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_an_update_of_several_micro_batches_is_that_of_all_logits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    start = home / ("base" if stage == "stage1" else "stage1")
    found: dict[str, tuple[dict[str, float], dict[str, Tensor], list[int]]] = {}
    for kind in (workshop.WatchedTrainer, AllLogits):
        heard = FirstGradients()
        asked: list[int] = []

        def make(kind: Any = kind, heard: FirstGradients = heard, asked: list[int] = asked, **given: Any) -> Any:
            made = kind(**given)
            made.add_callback(heard)
            head = made.loaded.safe_llava.get_output_embeddings()
            head.register_forward_pre_hook(lambda module, hidden: asked.append(hidden[0].shape[1]))
            return made

        monkeypatch.setattr(trainer, "SafeTrainer", make)
        recipe = workshop.recipe(
            start, home / "data" / "mixed.jsonl", tmp_path / kind.__name__, stage, optim={"max_steps": 1}
        )
        found[kind.__name__] = (workshop.history(train(recipe))[0], heard.found, asked)
    (ours, mine, few), (plain, theirs, all_of_them) = found.values()
    assert len(few) == len(all_of_them) == 2, "one update of two micro-batches"
    assert all(less < more for less, more in zip(few, all_of_them, strict=True)), (few, all_of_them)
    for term in ("loss", "loss_lm", "loss_level", "loss_category", "grad_norm"):
        assert ours[term] == pytest.approx(plain[term], rel=1e-6), term
    assert mine and set(mine) == set(theirs)
    assert any(each.abs().max() > 1e-3 for each in mine.values())
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=RELATIVE, atol=ABSOLUTE, msg=name)


@families.few()
def test_every_family_gives_the_loss_and_the_gradients_of_all_logits(family: str, tmp_path: Path) -> None:
    loaded, batch = _loaded_and_batch(family, tmp_path)
    batch["labels"][0] = IGNORED  # a row that teaches nothing
    batch[KEY] = columns_before_labels(batch["labels"])
    with positions_of_head(loaded.model) as asked:
        loss, mine = _loss_and_gradients(loaded, batch, tmp_path)
        whole, theirs = _loss_and_gradients(loaded, {k: v for k, v in batch.items() if k != KEY}, tmp_path)
    assert asked == [len(batch[KEY]), batch["labels"].shape[1]] and asked[0] < asked[1]
    assert loss == pytest.approx(whole, rel=1e-6) and loss > 0
    assert set(mine) == set(theirs)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=RELATIVE, atol=ABSOLUTE, msg=name)


@families.few()
def test_a_batch_without_a_labelled_token_is_a_loss_of_zero_with_gradients_of_zero(family: str, tmp_path: Path) -> None:
    loaded, batch = _loaded_and_batch(family, tmp_path)
    for name in ("labels", "safe_level", "safe_type"):
        batch[name] = torch.full_like(batch[name], IGNORED)
    batch[KEY] = columns_before_labels(batch["labels"])
    loss, found = _loss_and_gradients(loaded, batch, tmp_path)
    assert loss == 0 and found and not any(each.any() for each in found.values())


def _loaded_and_batch(family: str, folder: Path) -> tuple[loading.Loaded, dict[str, Any]]:
    """With safety modules that train; two records of unequal length, one of them without an image."""
    turns = {"seen": ["<image>\nWhat is it?", "A thing."], "words": ["Hello!", "Hi, and what can I do for you?"]}
    families.image(0, 20, 24).save(folder / "0.png")
    rows = [
        {
            "id": name,
            **({"image": "0.png", "safe_type": "illegal", "safe_level": "must_refuse"} if name == "seen" else {}),
            "conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt"), said, strict=True)],
        }
        for name, said in turns.items()
    ]
    data = workshop.save_rows(folder / "data.jsonl", rows)
    loaded = loading.load(families.saved(family, folder / "stock"), safety=families.SAFETY)
    loaded.model.train()
    return loaded, dict(Collator(loaded.processor)(list(read_records([str(data)], DEFAULT))))


def _loss_and_gradients(loaded: loading.Loaded, batch: dict[str, Any], folder: Path) -> tuple[float, dict[str, Tensor]]:
    arguments = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to="none")
    made = SafeTrainer(loaded=loaded, weights=LossWeights(2.0, 3.0, 5.0), files={}, model=loaded.model, args=arguments)
    loaded.model.zero_grad()
    loss = made.compute_loss(loaded.model, dict(batch))
    loss.backward()
    return loss.item(), gradients(loaded.model)
