"""A small base of another family: what it takes from the miniature, what its own processor gives it, and the build."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llava_patch.classes import Model
from llava_patch.pretrained import from_folder
from safevlm.backbones import fresh
from safevlm.engine import Engine
from safevlm.miniature import conversations, drawing
from safevlm.miniature.__main__ import main
from safevlm.miniature.family import FAMILIES, FamilyConfig, Learner, build
from safevlm.miniature.world import sample_scene
from safevlm.types import Generation, Request
from safevlm.worlds.views import Camera

MINIATURE = Path(__file__).parents[2] / "checkpoints" / "miniature"
TINY = FamilyConfig(scenes=40, sight_steps=2, sight_batch=8, lm_steps=2, lm_batch=4, cases=0)
each = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def learner(request: pytest.FixtureRequest) -> Learner:
    torch.manual_seed(0)
    return Learner(request.param, MINIATURE)


def test_its_llm_starts_as_the_miniatures(learner: Learner) -> None:
    source: Any = from_folder(Model, MINIATURE)
    known = json.loads((MINIATURE / "tokenizer.json").read_text())["model"]["vocab"]
    vocabulary = learner.tokenizer.get_vocab()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        mine, theirs = getattr(learner.model, name)().weight, getattr(source, name)().weight
        assert all(torch.equal(mine[vocabulary[token]], theirs[row]) for token, row in known.items())
    layers = learner.model.get_submodule(learner.row.llm).layers.state_dict()
    theirs = source.model.language_model.layers.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in layers.items())


def test_training_reads_pixels_as_the_processor_gives_them(learner: Learner) -> None:
    scene = sample_scene(random.Random(3), "benign")
    read = learner.row.read(learner.processor, [drawing.draw(scene)])[0]
    images = learner.processor.image_processor
    drawn = torch.tensor(list(drawing.draw(scene).getdata())).view(drawing.SIZE, drawing.SIZE, 3).permute(2, 0, 1)
    mean, std = (torch.tensor(value)[:, None, None] for value in (images.image_mean, images.image_std))
    taught = fresh.images_of(learner.family, ((drawn / 255 - mean) / std)[None])[0]
    assert set(taught.tensors) >= set(learner.row.takes)
    for name in learner.row.takes:
        assert torch.allclose(taught.tensors[name].float(), read.tensors[name].float(), atol=1e-5), name
    assert Camera(0, images.image_mean, images.image_std).take(drawn[None])[0].shape == (1, 3, 64, 64)
    slots = learner.tokenizer(read.placeholder, add_special_tokens=False)["input_ids"]
    assert slots.count(learner.processor.image_token_ids[0]) == learner.sizes.image_tokens


def test_what_is_learned_of_a_conversation_is_the_answer_and_its_end(learner: Learner) -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng, "benign") for _ in range(4)]
    placeholder = learner.row.read(learner.processor, [drawing.draw(scenes[0])])[0].placeholder
    for batch in conversations.batches(rng, learner.processor, scenes, range(4), 4, placeholder):
        for row, (ids, labels) in batch:
            answer = learner.tokenizer.decode([token for token in labels if token >= 0])
            assert answer.startswith((" There is", " Take the", " I ", " The ")) and answer.endswith(
                learner.tokenizer.eos_token
            )
            asked = learner.tokenizer.decode(ids)
            assert asked.count(learner.tokenizer.bos_token) == 1
            assert asked.count(placeholder) == (row is not None)


@pytest.mark.slow
@each
def test_a_base_of_the_family_is_fixed_by_its_seed_and_loads_as_stock(family: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(tmp_path / name, family, MINIATURE, TINY)
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("a", "b"))
    assert one["made_by"]["digests"] == other["made_by"]["digests"] and one["family"] == family
    auto: Any = transformers.AutoModelForImageTextToText
    model, found = auto.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert model.config.model_type == family and not found["missing_keys"] and not found["unexpected_keys"]
    image = drawing.draw(sample_scene(random.Random(1), "benign"))
    replies = Engine.load(tmp_path / "a", defense="none", device="cpu").reply_all(
        [Request("What is in the picture?", images=(image,)), Request("What is a cup?")], Generation(max_new_tokens=3)
    )
    assert len(replies) == 2


@pytest.mark.parametrize("flags", [["--family", "llava_99"], ["--from", "x"]])
def test_a_family_that_cannot_be_is_wrong_usage(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["miniature", "build", "--out", str(tmp_path / "out"), *flags])
    assert main() == 2
    said = capsys.readouterr().err
    assert flags[0] in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
