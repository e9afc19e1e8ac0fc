"""A whole training run in a second: a tiny stock LLaVA that speaks the miniature's words, its data, and a recipe."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast, TrainerState

from safevlm.config import (
    DataConfig,
    LoraSettings,
    LossWeights,
    ModelConfig,
    OptimConfig,
    Recipe,
    RunConfig,
    SafetyConfig,
)
from safevlm.miniature import dataset
from safevlm.miniature.build import make_processor
from safevlm.miniature.words import build_tokenizer
from safevlm.training import trainer
from safevlm.training.provenance import recipe_yaml
from safevlm.training.trainer import SafeTrainer
from tests import tiny

IMAGE_SIZE, PATCH, WIDTH = 64, 16, 32
PATCHES = (IMAGE_SIZE // PATCH) ** 2
LAYERS, PROJECTIONS = 2, 7
"""Of tests/tiny.py's LLM: layers, and linear layers in each."""


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def processor() -> LlavaProcessor:
    """The miniature's, a new one at every call: loading a model changes it."""
    return make_processor(tokenizer())


def stock(seed: int = 0) -> LlavaForConditionalGeneration:
    """A tiny stock LLaVA with the miniature's vocabulary and image size."""
    config = tiny.stock_config(width=WIDTH, image_size=IMAGE_SIZE, patch=PATCH)
    config.text_config.vocab_size = len(tokenizer())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


def stock_folder(folder: Path) -> Path:
    stock().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def rows(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """`count` training records of the miniature as dicts; their images are written below `folder`."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dataset.write(
            folder,
            dataset.MiniatureDataConfig(
                risky=count - count // 3, clean=count // 3, per_group=0, validation_per_group=0
            ),
        )
    return [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def mixed_rows(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """The same, but every fourth record has no verdict, every fourth no image, and answers differ in length."""
    made = rows(folder, count)
    for index, row in enumerate(made):
        question, answer = row["conversations"]
        answer["value"] = " ".join([answer["value"]] * (1 + index % 3))
        if index % 4 == 1:
            del row["safe_type"], row["safe_level"]
        elif index % 4 == 2:
            del row["image"]
            question["value"] = question["value"].replace("<image>\n", "")
    return made


def save_rows(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    return file


def recipe(base: Path, records: Path, out: Path, stage: str = "stage1", **sections: dict[str, Any]) -> Recipe:
    """24 records, 8 to an update, 3 updates to an epoch; `sections` override fields: `optim={"lr": 1}`."""
    fields: dict[str, dict[str, Any]] = {
        "model": {"path": str(base), "safety": SafetyConfig(**tiny.SAFETY)},
        "data": {"train": [str(records)]},
        "loss": {},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "optim": {
            "lr": 3e-3,
            "epochs": 1,
            "batch_size": 4,
            "accumulation": 2,
            "warmup_steps": 0,
            "schedule": "cosine",
            "max_grad_norm": 100.0,
        },
        "run": {"out": str(out), "device": "cpu", "log_steps": 1, "save_steps": 100, "keep": 9},
    }
    kinds = {
        "model": ModelConfig,
        "data": DataConfig,
        "loss": LossWeights,
        "lora": LoraSettings,
        "optim": OptimConfig,
        "run": RunConfig,
    }
    made = {name: kind(**{**fields[name], **sections.get(name, {})}) for name, kind in kinds.items()}
    return Recipe(stage=stage, **made)  # type: ignore[arg-type]


def pretended_checkpoint(made: Recipe, step: int, processes: int = 1, **record: Any) -> Path:
    """What a run of the recipe writes beside its weights after `step` updates, without any training."""
    folder = Path(made.run.out) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_yaml(made), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"processes": processes, **record}), encoding="utf-8")
    TrainerState(global_step=step, max_steps=step).save_to_json(str(folder / "trainer_state.json"))
    for name in ("latest", "optimizer.pt", "scheduler.pt"):
        (folder / name).touch()
    return folder


def history(folder: Path) -> list[dict[str, float]]:
    """One line per update, as logged; `folder` is a checkpoint or a result."""
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [line for line in log if "loss" in line]


class WatchedTrainer(SafeTrainer):
    """Remembers the weights it started from, what it was fed, and how often the LLM ran."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.before = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.fed: list[list[str]] = []
        self.llm_calls = 0
        self.loaded.safe_llava.model.language_model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.llm_calls += 1

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.fed.append(list(inputs["ids"]))
        return super().compute_loss(model, inputs, *rest, **named)

    def changed(self) -> set[str]:
        """Names of all weights and buffers that are not what they were."""
        after = self.model.state_dict()
        assert set(after) == set(self.before), "weights came or went while training"
        return {name for name, tensor in after.items() if not torch.equal(tensor, self.before[name])}


def watch(monkeypatch: pytest.MonkeyPatch) -> list[WatchedTrainer]:
    """The trainers that `run.train` makes from now on, in order."""
    # its class is made of the trainer that it finds when it is first loaded: not of the one that watches
    importlib.import_module("safevlm.training.adversarial")
    made: list[WatchedTrainer] = []

    def make(**arguments: Any) -> WatchedTrainer:
        made.append(WatchedTrainer(**arguments))
        return made[-1]

    monkeypatch.setattr(trainer, "SafeTrainer", make)
    return made


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
