"""Security tensors on other families: one learns, moves nothing else, and the engine reads it as training did.

A textual one on every family; a visual one where an image is one square of pixels.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safevlm.__main__ import main
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.config import Position, Recipe, SafetyConfig, TensorKind, TensorSettings
from safevlm.data import dense_pixels
from safevlm.data.pixels import read_singly
from safevlm.data.records import PARTS, Record, read_records
from safevlm.defenses import Inputs, security_tensor
from safevlm.defenses.security_tensor import SecurityTensor
from safevlm.engine import Engine
from safevlm.engine.checks import check_inputs
from safevlm.model import families as classes
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training import tensor_stage
from safevlm.training.provenance import recipe_yaml
from safevlm.training.run import train
from safevlm.training.tensor_stage import FED, TensorTrainer
from safevlm.training.tensors import shape_of
from safevlm.types import Request
from tests.backbones import families
from tests.backbones.features import FEATURES
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


def _said(engine: Engine, *records: Record) -> Tensor:
    """The same of the engine, in one batch: (b, vocabulary)."""
    encoded = engine.encoded([Request(own.messages[0]["content"][-1]["text"], own.images) for own in records])
    assert encoded is not None
    with torch.no_grad():
        return engine.model(**encoded.model_inputs).logits[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(TensorKind))
@families.few()
def test_a_tensor_learns_alone_and_the_engine_reads_it_as_training_did(
    family: str, kind: TensorKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family not in FEATURES[f"{kind} security tensor"]:
        pytest.skip("refused, see below")
    position: Position = "start" if family in AT_START else "after_image"
    stock, trainers = families.saved_whole(family, tmp_path / "stock"), _watched(monkeypatch)
    _pairs(tmp_path)
    final = train(_recipe(tmp_path, stock, kind=kind, position=position))
    losses = [line["loss_malicious"] for line in workshop.history(final) if "loss_malicious" in line]
    assert losses[-1] < losses[0] - 1e-3, losses

    (trainer,), before = trainers, loading.load(stock).model.state_dict()
    after = trainer.loaded.safe_llava.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    file = final / security_tensor.file_name(kind)
    assert torch.equal(load_file(file)[security_tensor.KEY], trainer.model.values())

    bare = Engine.load(stock, defense="none", device="cpu")
    guarded = Engine.load(stock, defense=f"security-tensor:{kind}={final}", device="cpu")
    records = read_records([tmp_path / "pairs.jsonl"], DEFAULT)[::5]  # one image, and two
    together = _said(guarded, *records)
    for record, said in zip(records, together, strict=True):
        torch.testing.assert_close(said, _said(guarded, record)[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(said, _learned(trainer, record), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(said, _said(bare, record)[0], atol=1e-2), "the tensor changes nothing"


@families.each()
def test_the_config_knows_the_shape_that_the_processor_makes(family: str) -> None:
    """And none where images differ: `tensor.kind: visual` is then refused before training."""
    stock, processor = families.stock(family)
    if getattr(processor.image_processor, "crop_to_patches", False):
        processor.image_processor.max_patches = 1
    kind = classes.classes_of(stock.config)
    with torch.device("meta"):
        model = kind.model(kind.config.from_stock(stock.config, BARE))
    read, visual = partial(read_singly, processor), TensorSettings(kind="visual")
    if family in FEATURES["visual security tensor"]:
        assert dense_pixels.shape_of(read) == shape_of(model, visual)
        return
    with pytest.raises(ValueError, match="images become"):
        dense_pixels.shape_of(read)
    with pytest.raises(ValueError, match=r"tensor\.kind: visual .* textual"):
        shape_of(model, visual)


@families.each(["gemma3"])
def test_a_visual_tensor_of_zeros_changes_no_bit_of_what_the_model_says(family: str, tmp_path: Path) -> None:
    stock = families.saved(family, tmp_path / "stock")
    file = tmp_path / security_tensor.file_name("visual")
    security_tensor.write(file, SecurityTensor("visual", torch.zeros(3, families.SIDE, families.SIDE)))
    bare, guarded = (
        Engine.load(stock, defense=name, device="cpu") for name in ("none", f"security-tensor:visual={file}")
    )
    _pairs(tmp_path)
    for record in read_records([tmp_path / "pairs.jsonl"], DEFAULT)[::5]:
        assert torch.equal(_said(guarded, record)[0], _said(bare, record)[0])


@pytest.mark.parametrize(("family", "why"), [("llava_next", "tiles or patches"), ("internvl", "images become")])
def test_a_visual_tensor_is_refused_before_training_and_before_loading(
    family: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One family never leaves an image whole, the other's processor does not as it is."""
    stock = families.saved(family, tmp_path / "stock")
    _pairs(tmp_path)
    recipe = _recipe(tmp_path, stock, kind="visual")
    with pytest.raises(ValueError, match=rf"tensor\.kind: visual .* {why} .* textual"):
        train(recipe)
    assert not (tmp_path / "out" / "final").exists()
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 1
    assert "tensor.kind: visual" in capsys.readouterr().out

    file = tmp_path / security_tensor.file_name("visual")
    security_tensor.write(file, SecurityTensor("visual", torch.zeros(3, families.SIDE, families.SIDE)))
    with pytest.raises(ValueError, match=f"security-tensor:visual .* {why} .* security-tensor:textual"):
        Engine.load(stock, defense=f"security-tensor:visual={file}", device="cpu")


def test_what_the_optimiser_moves_is_pixels_where_the_tower_is_not_llavas(tmp_path: Path) -> None:
    _pairs(tmp_path)
    with pytest.raises(ValueError, match=r"tensor\.basis"):
        train(_recipe(tmp_path, families.saved("gemma3", tmp_path / "stock"), kind="visual", basis="patches"))


@families.each(["gemma3", "qwen3_vl"])
def test_a_hook_changes_values_of_an_image_and_nothing_else_of_it(family: str) -> None:
    _, processor = families.stock(family)
    images: Any = read_singly(processor, [families.image(0), families.image(1)])
    before = Inputs(torch.tensor([1]), images, image_token_id=0)
    values = images[1].tensors["pixel_values"]

    def changed(pixels: Any = values, **fields: Any) -> Inputs:
        other = dataclasses.replace(images[1], tensors={**images[1].tensors, "pixel_values": pixels}, **fields)
        return dataclasses.replace(before, pixel_values=ImageInputs([images[0], other]))

    check_inputs(changed(values + 1), before, 9, 4)
    wrong = {
        "shape": changed(values[..., :-1]),
        "not finite": changed(values * math.nan),
        "float": changed(values.long()),
        "values alone": changed(placeholder="<image>"),
        "1 images, not of 2": dataclasses.replace(before, pixel_values=images[:1]),
    }
    for told, given in wrong.items():
        with pytest.raises(ValueError, match=told):
            check_inputs(given, before, 9, 4)
    with pytest.raises(TypeError, match="ImageInputs"):
        check_inputs(dataclasses.replace(before, pixel_values=values), before, 9, 4)


@pytest.mark.parametrize(
    ("family", "kind", "trained"),
    [("qwen3_vl", "textual", 4 * families.WIDTH), ("gemma3", "visual", 3 * families.SIDE**2)],
)
def test_a_recipe_passes_its_check(
    family: str, kind: TensorKind, trained: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _pairs(tmp_path)
    recipe = _recipe(tmp_path, families.saved(family, tmp_path / "stock"), kind=kind)
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().out
    assert f"trains {trained} parameters in 1 tensors" in capsys.readouterr().out
