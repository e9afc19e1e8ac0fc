"""A family that does not answer here: it is looked at, a head is trained on it, and whoever wants more is told why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safevlm import defenses
from safevlm.__main__ import main
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.table import BACKBONES
from safevlm.config import LossWeights
from safevlm.engine import Engine, load, setting_of
from safevlm.model import loading
from safevlm.model.safety_modules import is_safety_name
from safevlm.taxonomy import DEFAULT
from safevlm.training.run import train
from safevlm.types import Request
from tests.backbones import families
from tests.backbones.small_runs import data as _data
from tests.backbones.small_runs import recipe as _recipe
from tests.backbones.test_contract import CPU, counted
from tests.backbones.test_defenses import REFUSES
from tests.serve.serving import NAME, asked, listening
from tests.serve.upstreams import Recorder, fronting

each_family = families.each([name for name, row in BACKBONES.items() if row.looks_only])


def _counted(names: Iterable[str], said: list[str]) -> dict[str, int]:
    return {name: said.count(name) for name in names}


@each_family
def test_what_a_head_reads_is_what_the_llm_would_attend_to(family: str, tmp_path: Path) -> None:
    stock, _ = families.stock(family)
    loaded = loading.load(families.saved(family, tmp_path / "stock"), lm=False)
    read = [BACKBONES[family].read(loaded.processor, [families.image(1, width, 12)])[0] for width in (12, 40)]
    seen = loaded.safe_llava.encode_images(ImageInputs(read)).patches
    for image, own in zip(read, seen, strict=True):
        tensors = {name: image.tensors[name] for name in BACKBONES[family].takes}
        with torch.no_grad():
            states = stock.model.multi_modal_projector(stock.model.vision_model(**tensors).last_hidden_state)
        tiles = int(image.tensors["aspect_ratio_mask"].sum())
        torch.testing.assert_close(own, states[0, 0, :tiles].flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert len({len(own) for own in seen}) == 2, "images of two shapes take as many tiles"


@each_family
def test_a_head_is_trained_alone_and_looks(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock = families.saved(family, tmp_path / "stock")
    data = _data(tmp_path)
    head = train(_recipe(tmp_path, "stage1", stock, "head", lm_tokens=0, loss=LossWeights(lm=0)))
    assert all(is_safety_name(name) for name in load_file(head / "safety.safetensors"))

    engine = Engine.load(head, device="cpu", lm=False)
    first, second, other = families.image(1, 40, 20), families.image(3, 20, 44), families.image(9, 28, 28)
    with counted(engine.model.tower) as calls:
        looked = engine.look(Request("Which?", images=(first, second)))
    assert len(calls) == 1 and looked.looked and not looked.error
    for images in ((other, second), (first, other)):
        assert engine.look(Request("Which?", images=images)).level_probabilities != looked.level_probabilities

    assert main(["check", str(stock)]) == 0, capsys.readouterr().out
    words = ["audit", str(data), "--model", str(head), "--out", str(tmp_path / "audit"), "--device", "cpu"]
    assert main(words) == 0
    audited = json.loads((tmp_path / "audit" / "summary.json").read_text(encoding="utf-8"))
    alone = [engine.look(Request("?", images=(str(tmp_path / f"{index}.png"),))) for index in (*range(6), 1, 3)]
    assert audited["images"] == 8 and audited["level"] == _counted(audited["level"], [each.level for each in alone])


@each_family
@pytest.mark.parametrize(("level", "category"), [("safe", "clean"), ("must_refuse", "illegal")])
def test_it_guards_a_server_that_answers(family: str, level: str, category: str, tmp_path: Path) -> None:
    head = dataclasses.replace(families.SAFETY, lm_tokens=0)
    loaded = loading.load(families.saved(family, tmp_path / "stock"), safety=head, lm=False)
    with torch.no_grad():
        loaded.safe_llava.safety_head.level.bias[DEFAULT.level_names.index(level)] += 1e4
        loaded.safe_llava.safety_head.category.bias[DEFAULT.category_names.index(category)] += 1e4
    engine = Engine(loaded, defenses.build("safety-head", setting_of(loaded, REFUSES, {}, CPU)), CPU)
    upstream = Recorder()
    with listening(upstream) as there, fronting(engine, there) as served, served.client() as client:
        messages: Any = [asked("What is it?", families.image(0))]
        answer = client.chat.completions.create(model=NAME, messages=messages).choices[0]
    is_safe = level == "safe"
    assert (answer.message.content == "A cup.", len(upstream.bodies)) == (is_safe, int(is_safe))
    assert answer.finish_reason == ("stop" if is_safe else "content_filter")


@each_family
def test_whoever_wants_answers_is_told_why_there_are_none(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = families.saved(family, tmp_path / "stock")
    _data(tmp_path)
    with pytest.raises(ValueError, match="does not answer"):
        load(stock, defense="none", device="cpu")
    with pytest.raises(ValueError, match="does not answer"):
        train(_recipe(tmp_path, "stage1", stock, "one"))
    with pytest.raises(ValueError, match="does not answer"):
        train(_recipe(tmp_path, "stage2", stock, "two"))
    capsys.readouterr()
    assert main(["chat", "--model", str(stock), "--ask", "Hello!"]) == 1
    told = capsys.readouterr().err
    assert "cross-attention" in told and "--upstream" in told and len(told.strip().splitlines()) == 1
