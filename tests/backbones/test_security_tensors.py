"""A textual security tensor on every family: it learns, moves nothing else, and the engine reads it as training did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safevlm.__main__ import main
from safevlm.config import Position, Recipe, SafetyConfig, TensorSettings
from safevlm.data.records import PARTS, Record, read_records
from safevlm.defenses import security_tensor
from safevlm.defenses.security_tensor import SecurityTensor
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training import tensor_stage
from safevlm.training.provenance import recipe_yaml
from safevlm.training.run import train
from safevlm.training.tensor_stage import FED, TensorTrainer
from safevlm.types import Request
from tests.backbones import families
from tests.training import workshop

BARE = SafetyConfig(projector="none", lm_tokens=0, head_tokens=0)
AT_START = ("gemma3", "qwen2_vl", "qwen3_5", "smolvlm")
"""Families whose tensor stands in front of everything; that of the others stands behind the last image."""
SAID = {"malicious": "I cannot help with that.", "contrastive": "A thing.", "benign": "Colours."}


def _pairs(home: Path) -> Path:
    """Of each part two; the last has two images, and all differ in shape and length."""
    rows: list[dict[str, Any]] = []
    for index, part in enumerate(part for part in PARTS for _ in range(2)):
        families.image(index, 20 + 6 * index, 40 - 4 * index).save(home / f"{index}.png")
        images = ["0.png", "3.png"] if index == 5 else [f"{index}.png"]
        question = "<image>" * len(images) + "\nWhat is it" + "?" * (index + 1)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": SAID[part]}]
        rows.append({"id": str(index), "image": images, "part": part, "conversations": turns})
    return workshop.save_rows(home / "pairs.jsonl", rows)


def _recipe(home: Path, start: Path, **tensor: Any) -> Recipe:
    """Three pairs are trained on, three held out; six updates, the first with a rate of 0.

    One position is trained with checkpointing of activations, the other without.
    """
    settings = TensorSettings(**{"tokens": 4, "init_std": 0.1, "held_out": 1, **tensor})
    saves = {"gradient_checkpointing": settings.position == "start"}
    optim = {"lr": 0.3, "epochs": 6, "batch_size": 3, "accumulation": 1, "warmup_steps": 1, **saves}
    made = workshop.recipe(start, home / "pairs.jsonl", home / "out", model={"safety": BARE}, optim=optim)
    return dataclasses.replace(made, stage="security_tensor", tensor=settings)


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[TensorTrainer]:
    made: list[TensorTrainer] = []
    monkeypatch.setattr(tensor_stage, "TensorTrainer", lambda **given: made.append(TensorTrainer(**given)) or made[-1])
    return made


def _learned(trainer: TensorTrainer, record: Record) -> Tensor:
    """Logits of the first answer token behind the tensor, as training makes them."""
    collate: Any = trainer.data_collator
    batch = collate([record])
    with torch.no_grad():
        model = trainer.model.eval()
        return model(**{name: batch[name] for name in FED}, untouched=torch.tensor([False])).logits[0]


def _said(engine: Engine, record: Record) -> Tensor:
    """The same of the engine."""
    asked = Request(record.messages[0]["content"][-1]["text"], record.images)
    encoded = engine.encoded([asked])
    assert encoded is not None
    with torch.no_grad():
        return engine.model(**encoded.model_inputs).logits[0, -1]


@families.each()
def test_a_textual_tensor_learns_alone_and_the_engine_reads_it_as_training_did(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    position: Position = "start" if family in AT_START else "after_image"
    stock, trainers = families.saved(family, tmp_path / "stock"), _watched(monkeypatch)
    _pairs(tmp_path)
    final = train(_recipe(tmp_path, stock, position=position))
    losses = [line["loss_malicious"] for line in workshop.history(final) if "loss_malicious" in line]
    assert losses[-1] < losses[0] - 1e-3, losses

    (trainer,), before = trainers, loading.load(stock).model.state_dict()
    after = trainer.loaded.safe_llava.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    file = final / security_tensor.file_name("textual")
    assert torch.equal(load_file(file)[security_tensor.KEY], trainer.model.values())

    bare = Engine.load(stock, defense="none", device="cpu")
    guarded = Engine.load(stock, defense=f"security-tensor:textual={final}", device="cpu")
    for record in read_records([tmp_path / "pairs.jsonl"], DEFAULT)[::5]:  # one image, and two
        said = _said(guarded, record)
        torch.testing.assert_close(said, _learned(trainer, record), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(said, _said(bare, record), atol=1e-2), "the tensor changes nothing"


@families.each(["gemma3"])
def test_a_visual_tensor_is_refused_before_training_and_before_loading(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = families.saved(family, tmp_path / "stock")
    _pairs(tmp_path)
    recipe = _recipe(tmp_path, stock, kind="visual")
    with pytest.raises(ValueError, match=r"tensor\.kind: visual .* textual"):
        train(recipe)
    assert not (tmp_path / "out" / "final").exists()
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 1
    assert "tensor.kind: visual" in capsys.readouterr().out

    file = tmp_path / security_tensor.file_name("visual")
    security_tensor.write(file, SecurityTensor("visual", torch.zeros(3, families.SIDE, families.SIDE)))
    with pytest.raises(ValueError, match="security-tensor:visual .* security-tensor:textual"):
        Engine.load(stock, defense=f"security-tensor:visual={file}", device="cpu")


@families.each(["qwen3_vl"])
def test_a_recipe_of_a_textual_tensor_passes_its_check(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pairs(tmp_path)
    recipe = _recipe(tmp_path, families.saved(family, tmp_path / "stock"))
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().out
    assert f"trains {4 * families.WIDTH} parameters in 1 tensors" in capsys.readouterr().out
