"""Fine-tuning on data that nobody filtered: answers about risky images become refusals, the rest stays as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from safevlm.data.collate import IGNORED, Collator
from safevlm.data.records import Record, read_records
from safevlm.defenses import prompts
from safevlm.defenses.bank import write_bank
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT
from safevlm.training import relabel as module
from safevlm.training.relabel import relabel
from safevlm.training.run import train
from tests.defenses import banks
from tests.training import workshop
from tests.training.launching import fork

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `data/mixed.jsonl` and `bank.safetensors`, which sees different things in the data's images."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    rows = workshop.mixed_rows(home / "data")
    for row in rows:  # as public chat data is: no label
        row.pop("safe_type", None), row.pop("safe_level", None)
    rows[0]["conversations"] += [{"from": "USER", "value": "And now?"}, {"from": "ASSISTANT", "value": "Turn it."}]
    workshop.save_rows(home / "data" / "mixed.jsonl", rows)
    model = loading.load(home / "base").safe_llava
    write_bank(banks.bank(model, tau=0.2), home / "bank.safetensors")
    return home


def _arguments(process: int = 0, processes: int = 1) -> Any:
    return SimpleNamespace(device=torch.device("cpu"), process_index=process, world_size=processes)


def _recipe(home: Path, **data: Any) -> Any:
    data = {"relabel": str(home / "bank.safetensors"), **data}
    return workshop.recipe(home / "base", home / "data" / "mixed.jsonl", home / "out", data=data)


def _records(home: Path) -> list[Record]:
    return read_records([home / "data" / "mixed.jsonl"], DEFAULT)


def _texts(record: Record, role: str) -> list[str]:
    return [message["content"][-1]["text"] for message in record.messages if message["role"] == role]


@pytest.fixture(scope="module")
def corrected(home: Path) -> tuple[list[Record], dict[str, int]]:
    return relabel(_records(home), _recipe(home), loading.load(home / "base"), _arguments())


def test_risky_images_are_answered_with_the_refusal_of_their_category(home: Path, corrected: Any) -> None:
    loaded = loading.load(home / "base")
    detector = SafeClipDetector(banks.bank(loaded.safe_llava, tau=0.2), DEFAULT)
    counts: dict[str, int] = {}
    for before, after in zip(_records(home), corrected[0], strict=True):
        images = [Image.open(path).convert("RGB") for path in before.images]
        if not images:
            assert after == before, "a record in words was changed"
            continue
        pixels = loaded.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            finding = detector.gravest(detector.look(loaded.safe_llava.encode_images(pixels)))
        if finding.is_risky:
            counts[finding.concept.name] = counts.get(finding.concept.name, 0) + 1
            assert set(_texts(after, "assistant")) == {prompts.refusal(DEFAULT, finding.concept.category)}
            assert _texts(after, "user") == _texts(before, "user"), "the question was changed"
        else:
            assert after == before
    assert corrected[1] == dict(sorted(counts.items())) and len(counts) > 1, "one concept for all shows nothing"


def test_every_answer_of_a_talk_about_a_risky_image_is_a_refusal(home: Path) -> None:
    loaded, file = loading.load(home / "base"), home / "sure.safetensors"
    write_bank(banks.bank(loaded.safe_llava, banks.saying("must_refuse", "illegal")), file)
    talk = relabel(_records(home), _recipe(home, relabel=str(file)), loaded, _arguments())[0][0]
    assert _texts(talk, "assistant") == [prompts.refusal(DEFAULT, "illegal")] * 2


def test_trap_7_labels_cover_the_new_answer_and_nothing_else(home: Path, corrected: Any) -> None:
    processor = loading.load(home / "base").processor
    for before, after in zip(_records(home), corrected[0], strict=True):
        if after == before:
            continue
        batch = Collator(processor)([after])
        learned = batch["labels"][0][batch["labels"][0] != IGNORED]
        said = "".join(f" {text}</s>" for text in _texts(after, "assistant"))
        assert processor.tokenizer.decode(learned) == said, "the loss is on other tokens than the refusal's"


def test_findings_do_not_hang_on_the_number_of_processes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    loaded, files = loading.load(home / "base"), sorted({path for one in _records(home) for path in one.images})
    detector = SafeClipDetector(banks.bank(loaded.safe_llava), DEFAULT)
    alone = module._matches(detector, loaded, files, _arguments())
    parts = [module._matches(detector, loaded, files, _arguments(process, 2)) for process in range(2)]
    assert not set(parts[0]) & set(parts[1]) and parts[0] and parts[1]
    assert sorted(alone) == files, "an image was not looked at"
    assert parts[0] | parts[1] == alone, "a finding differs in its last bits"


def test_an_image_of_many_records_is_looked_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    look = SafeClipDetector.look
    monkeypatch.setattr(
        SafeClipDetector, "look", lambda self, vision: looked.append(len(vision.cls)) or look(self, vision)
    )
    records = _records(home)
    relabel([*records, *records], _recipe(home), loading.load(home / "base"), _arguments())
    assert sum(looked) == len({path for record in records for path in record.images})


@pytest.mark.slow
def test_run_trains_on_the_corrected_answers_and_says_how_many(home: Path, corrected: Any, tmp_path: Path) -> None:
    recipe = _recipe(home)
    words = dataclasses.replace(recipe.loss, level=0.0, category=0.0)  # the records have no labels for a head
    recipe = dataclasses.replace(recipe, loss=words, run=dataclasses.replace(recipe.run, out=str(tmp_path / "run")))
    final = train(recipe)
    counted = json.loads((final / "run.json").read_text(encoding="utf-8"))["records"]
    assert counted["relabelled"] == corrected[1] and counted["all"] == len(corrected[0])
    plain = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, relabel=""))
    other = train(dataclasses.replace(plain, run=dataclasses.replace(recipe.run, out=str(tmp_path / "plain"))))
    assert "relabelled" not in json.loads((other / "run.json").read_text(encoding="utf-8"))["records"]
    assert workshop.history(final)[0]["loss"] != workshop.history(other)[0]["loss"], "it trained on the old answers"


def test_labels_of_a_corrected_record_stay(home: Path) -> None:
    labelled = dataclasses.replace(_records(home)[0], safe_type=0, safe_level=3)
    after = relabel([labelled], _recipe(home), loading.load(home / "base"), _arguments())[0][0]
    assert (after.safe_type, after.safe_level) == (0, 3), "labels are the head's truth, and stay"


def test_bank_of_another_tower_stops_the_run(home: Path) -> None:
    loaded, model = loading.load(home / "base"), loading.load(home / "base").safe_llava
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight.mul_(2)
    write_bank(banks.bank(model), home / "other.safetensors")
    with pytest.raises(ValueError, match="another vision tower"):
        relabel(_records(home), _recipe(home, relabel=str(home / "other.safetensors")), loaded, _arguments())


def test_relabelling_for_a_head_alone_is_an_error(home: Path) -> None:
    with pytest.raises(ValueError, match=r"data.relabel changes answers, and with loss.lm: 0 none is learned"):
        workshop.recipe(home / "base", home / "x", home / "out", data={"relabel": "bank"}, loss={"lm": 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "zero3"])
def test_two_processes_relabel_as_one(home: Path, corrected: Any, tmp_path: Path, launcher: str) -> None:
    def made(name: str, batch: int, by: str) -> Any:
        recipe = _recipe(home, group_by=by)
        optim = dataclasses.replace(recipe.optim, batch_size=batch, accumulation=4)
        return dataclasses.replace(recipe, optim=optim, run=dataclasses.replace(recipe.run, out=str(tmp_path / name)))

    final = fork(launcher, made("two", 1, "none"), tmp_path)
    one = train(made("one", 2, "kind" if launcher == "zero3" else "none"))  # ZeRO-3 groups unasked
    counted = json.loads((final / "run.json").read_text(encoding="utf-8"))["records"]
    assert counted["relabelled"] == corrected[1]
    losses = [[update["loss"] for update in workshop.history(folder)] for folder in (one, final)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "the processes did not train on the same answers"
