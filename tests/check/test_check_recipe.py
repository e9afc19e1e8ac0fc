"""A recipe with one thing wrong has exactly one ✗, and it is that thing; a good one has none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from safevlm.check import recipe as table
from safevlm.check import resources
from safevlm.check.findings import Finding
from safevlm.check.lazy_parts import run
from safevlm.check.plan import Cluster, RunPlan
from safevlm.config import Recipe, SafetyConfig, TensorSettings
from safevlm.data import chat
from safevlm.data.records import PARTS
from safevlm.training import provenance
from safevlm.training.run import train
from tests import tiny
from tests.training import workshop

OF_CHANGED_IMAGES = {"data.augment", "adversarial.epsilon", "tensor.kind"}
"""Checks of recipes that change images; of others they say nothing."""
assert {name for name, _ in table.CHECKS} >= OF_CHANGED_IMAGES


@dataclass
class Place:
    """A folder with a model, data and an empty place for the run; a defect changes one of them."""

    folder: Path
    sections: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    stage: str = "stage1"
    cluster: Cluster = Cluster(gpus=1)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def data(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "runs" / "x"

    def set(self, section: str, **fields: Any) -> None:
        self.sections.setdefault(section, {}).update(fields)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.read_text(encoding="utf-8").splitlines()]

    def json(self, path: Path, **fields: Any) -> None:
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**table, **fields}), encoding="utf-8")

    def yaml(self, name: str, content: Any) -> str:
        (self.folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(self.folder / name)

    def recipe(self) -> Recipe:
        return workshop.recipe(self.model, self.data, self.out, self.stage, **self.sections)

    def findings(self) -> list[Finding]:
        return list(run(table.CHECKS, RunPlan(self.recipe(), self.cluster)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    workshop.stock_folder(folder / "model")
    workshop.save_rows(folder / "train.jsonl", workshop.mixed_rows(folder, 12))
    return folder


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Place:
    shutil.copytree(pristine, tmp_path / "all")
    return Place(tmp_path / "all")


@pytest.fixture
def pairs(place: Place) -> Place:
    """What a security tensor learns from: two pairs of each part."""
    rows = [{**row, "part": PARTS[index % 3]} for index, row in enumerate(place.rows()) if row.get("image")]
    workshop.save_rows(place.data, rows[:6])
    place.stage = "security_tensor"
    place.set("model", safety=SafetyConfig(**tiny.BARE))
    return place


def _bad(findings: list[Finding]) -> list[str]:
    return [f"{one.title}\n{one.detail}" for one in findings if one.mark == "✗"]


def _with_rows(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        rows = place.rows()
        change(rows)
        workshop.save_rows(place.data, rows)

    return plant


def _setting(section: str, **fields: Any) -> Callable[[Place], None]:
    return lambda place: place.set(section, **fields)


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        tensors = load_file(place.model / "model.safetensors")
        change(tensors)
        save_file(tensors, place.model / "model.safetensors", metadata={"format": "pt"})

    return plant


def _truncate(place: Place) -> None:
    file = place.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _small_images(place: Place) -> None:
    file = place.model / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["image_processor"]["crop_size"] = {"height": 32, "width": 32}
    file.write_text(json.dumps(config), encoding="utf-8")


def _few_positions(place: Place) -> None:
    file = place.model / "config.json"
    text = json.loads(file.read_text(encoding="utf-8"))["text_config"]
    place.json(file, text_config={**text, "max_position_embeddings": 30})


def _deepspeed(**content: Any) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        place.json(place.folder / "ds.json", zero_optimization={"stage": 2}, **content)
        place.set("run", deepspeed=str(place.folder / "ds.json"))

    return plant


def _broken_image(place: Place) -> None:
    row = next(row for row in place.rows() if row.get("image"))
    (place.folder / row["image"]).write_bytes(b"no image")


def _other_run(place: Place) -> None:
    other = dataclasses.replace(place.recipe(), optim=dataclasses.replace(place.recipe().optim, lr=0.5))
    workshop.pretended_checkpoint(other, 3)


def _other_processes(place: Place) -> None:
    _deepspeed()(place)
    workshop.pretended_checkpoint(place.recipe(), 3, processes=7)


def _file_for_folder(place: Place) -> None:
    place.out.parent.mkdir()
    place.out.write_text("", encoding="utf-8")


def _unlabelled(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row.pop("safe_type", None), row.pop("safe_level", None)


def _bad_policy(place: Place) -> None:
    entries = {"categories": [{"name": "clean"}, {"name": "fire", "topic": "fire"}], "levels": [{"name": "safe"}]}
    _with_rows(_unlabelled)(place)
    place.set("model", taxonomy=place.yaml("own.yaml", {**entries, "policy": {"levels": {"nope": "hint"}}}))


DEFECTS: dict[str, tuple[Callable[[Place], None], str]] = {
    "missing data file": (_setting("data", train=["nowhere.jsonl"]), "no such record file nowhere.jsonl"),
    "missing images": (_setting("data", images="nowhere"), "data.images: no such folder"),
    "unknown label": (_with_rows(lambda rows: rows[2].update(safe_type="nope")), "train.jsonl:3: unknown safe_type"),
    "all records bad": (_with_rows(lambda rows: [row.pop("conversations") for row in rows]), "12 records"),
    "missing image": (_with_rows(lambda rows: rows[0].update(image="nope.png")), "no such image file"),
    "broken image": (_broken_image, "not an image that can be read"),
    "no verdicts": (_with_rows(_unlabelled), "the head learns nothing"),
    "too long": (_setting("data", max_length=30), "data.max_length 30 cuts"),
    "longer than the model": (_few_positions, "the model's 30 positions cut"),
    "a batch that cannot be split": (
        _setting("optim", effective_batch=6, accumulation=None),
        "optim.effective_batch: 6 cannot be split into 1 processes x optim.batch_size 4; possible sizes: 1, 2, 3, 6",
    ),
    "two batches": (_setting("optim", effective_batch=128), "optim.accumulation: 2 makes 8 records per update"),
    "a warm-up without end": (_setting("optim", warmup_steps=3), "optim.warmup_steps: 3 does not end"),
    "no deepspeed file": (_setting("run", deepspeed="nope.json"), "run.deepspeed: nope.json: no such file"),
    "deepspeed in fp16": (_deepspeed(fp16={"enabled": True}), "fp16.enabled"),
    "deepspeed's batch": (_deepspeed(train_micro_batch_size_per_gpu=64), "train_micro_batch_size_per_gpu is 64"),
    "missing model": (_setting("model", path="nowhere"), "nowhere: no such folder"),
    "foreign model": (lambda place: place.json(place.model / "config.json", model_type="gpt2"), "'gpt2'"),
    "missing weight": (_weights(lambda tensors: tensors.pop(sorted(tensors)[0])), "1 weights missing"),
    "weight of another shape": (
        _weights(lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(3)})),
        "of another shape",
    ),
    "foreign weight": (_weights(lambda tensors: tensors.update(nope=torch.zeros(3))), "unexpected: nope"),
    "truncated weights": (_truncate, "broken or truncated"),
    "no weights": (lambda place: (place.model / "model.safetensors").unlink(), "no weights here"),
    "processor of another size": (_small_images, "an image becomes (1, 3, 32, 32)"),
    "generation config": (
        lambda place: place.json(place.model / "generation_config.json", do_sample=False, typical_p=0.5),
        "typical_p",
    ),
    "bad policy": (_bad_policy, "unknown level 'nope'"),
    "out is a file": (_file_for_folder, "is a file; choose a folder"),
    "another recipe's run": (_other_run, "optim.lr 0.5 -> 0.003"),
    "another number of processes": (_other_processes, "saved by 7 processes under DeepSpeed"),
    "nothing to train": (
        _setting(
            "model",
            safety=dataclasses.replace(
                workshop.recipe(Path(), Path(), Path()).model.safety, projector="none", lm_tokens=0
            ),
        ),
        "nothing to train",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_one_defect_is_one_finding(place: Place, name: str) -> None:
    plant, told = DEFECTS[name]
    plant(place)
    before = sorted(place.folder.rglob("*"))
    bad = _bad(place.findings())
    assert len(bad) == 1 and told in bad[0], "\n---\n".join(bad) or "nothing was found"
    assert sorted(place.folder.rglob("*")) == before, "a check left something behind, or took it away"


@pytest.mark.slow
def test_too_small_a_gpu_is_a_finding_with_advice(place: Place) -> None:
    place.cluster = Cluster(gpus=1, gpu_memory=1.0)
    bad = _bad(place.findings())
    assert len(bad) == 1 and "memory: about" in bad[0] and "optim.batch_size" in bad[0]


def test_too_small_a_disk_is_a_finding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 20, 1 << 20, 200_000))
    bad = _bad(place.findings())
    assert len(bad) == 1 and bad[0].startswith("disk: ") and "run.keep" in bad[0], bad


def test_learning_something_else_than_the_answer_is_a_finding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = chat.encode_dialogues

    def shifted(*given: Any) -> dict[str, torch.Tensor]:
        encoded = encode(*given)
        return {**encoded, "assistant_masks": encoded["assistant_masks"].roll(-2, 1)}

    monkeypatch.setattr(chat, "encode_dialogues", shifted)
    bad = _bad(place.findings())
    assert len(bad) == 1 and "something else than their answer" in bad[0], bad


def test_image_tokens_that_the_model_does_not_take_are_a_finding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = RunPlan(place.recipe(), place.cluster)
    _ = plan.processor
    plan.processor.num_additional_image_tokens += 1
    found = _bad(list(run(table.CHECKS, plan)))
    assert len(found) == 1 and "image tokens that the model does not take" in found[0], found


def test_several_defects_are_told_in_one_go(place: Place) -> None:
    for name in ("unknown label", "missing weight", "two batches", "generation config"):
        DEFECTS[name][0](place)
    assert len(_bad(place.findings())) == 4


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("stage1", {}),
        ("stage1", {"loss": {"lm": 0}}),
        ("stage1", {"data": {"hints": True, "clean": 2}, "optim": {"gradient_checkpointing": True}}),
        ("stage2", {}),
    ],
)
def test_a_good_recipe_has_no_finding(place: Place, stage: str, sections: dict[str, dict[str, Any]]) -> None:
    place.stage, place.sections = stage, sections
    for name, fields in sections.items():
        if name == "data":
            fields["train"] = [str(place.data)]
    found = place.findings()
    assert all(one.ok for one in found), _bad(found) or [one.title for one in found if not one.ok]
    told = len(table.CHECKS) - len(OF_CHANGED_IMAGES)
    assert len(found) >= told - 1, "a check said nothing"
    assert not list(place.folder.glob(".safevlm-check*")) and not place.out.exists(), "the dry run left something"


def test_a_good_recipe_of_a_security_tensor_has_no_finding(pairs: Place) -> None:
    found = pairs.findings()
    assert all(one.ok for one in found), _bad(found) or [one.title for one in found if not one.ok]
    assert any(one.title.startswith("trains 320 parameters in 1 tensors") for one in found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.pop("part"), "train.jsonl:1: no `part`"),
        (lambda row: row.update(part="malicious"), "no pairs of the part 'contrastive'"),
        (lambda row: row.update(part="Harmful"), "6 records of"),
    ],
)
def test_pairs_that_teach_no_security_tensor_are_one_finding(
    pairs: Place, change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    _with_rows(lambda rows: [change(row) for row in rows])(pairs)
    bad = _bad(pairs.findings())
    assert len(bad) == 1 and told in bad[0], bad


def test_too_many_held_out_pairs_are_one_finding(pairs: Place) -> None:
    recipe = dataclasses.replace(pairs.recipe(), tensor=TensorSettings(held_out=2))
    bad = _bad(list(run(table.CHECKS, RunPlan(recipe, pairs.cluster))))
    assert len(bad) == 1 and "tensor.held_out: 2 of 2" in bad[0], bad


def test_the_sample_shows_slots_and_answer(place: Place) -> None:
    found = next(one for one in place.findings() if "as the model sees" in one.title)
    plan = RunPlan(place.recipe(), place.cluster)
    assert f"<image> x {plan.skeleton.slots}" in found.detail
    assert "⟦" in found.detail and "</s>⟧" in found.detail.replace("\n", "")
    assert "category" in found.detail and "pixels (1, 3, 64, 64)" in found.detail


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_what_trains_is_what_the_run_trains(place: Place, stage: str) -> None:
    place.stage = stage
    found = next(one for one in place.findings() if one.title.startswith("trains"))
    result = train(place.recipe())
    trained = json.loads((result / provenance.RUN).read_text(encoding="utf-8"))["trained"]
    assert found.title.startswith(f"trains {trained['parameters']:,} parameters in {trained['tensors']} tensors")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_disk_is_reckoned_as_a_run_fills_it(place: Place, stage: str) -> None:
    """The tokenizer weighs as much as a tiny model, so the modules are made wide enough to be seen."""
    wide = dataclasses.replace(place.recipe().model.safety, projector_width=256)
    place.stage = stage
    place.set("model", safety=wide)
    place.set("lora", r=64)
    place.set("run", save_steps=1, keep=2)
    plan = RunPlan(place.recipe(), place.cluster)
    need = resources.disk_need(plan)
    train(place.recipe())
    checkpoints = [_size(folder) for folder in place.out.glob("checkpoint-*")]
    assert len(checkpoints) == 2, "keep"
    assert need.checkpoint == pytest.approx(max(checkpoints), rel=0.15)
    assert need.final == pytest.approx(_size(place.out / "final"), rel=0.15)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.slow
def test_a_run_goes_on_and_its_result_starts_stage_2(place: Place) -> None:
    place.set("run", save_steps=1)
    train(place.recipe())
    found = place.findings()
    assert all(one.ok for one in found), _bad(found)
    assert any("goes on from" in one.title and "checkpoint-" in one.title for one in found)
    second = Place(place.folder, {"model": {"path": str(place.out)}, "run": {"out": str(place.folder / "y")}}, "stage2")
    assert all(one.ok for one in second.findings()), _bad(second.findings())


@pytest.mark.slow
def test_a_checkpoint_with_a_lora_must_be_merged_first(place: Place) -> None:
    place.stage = "stage2"
    result = train(place.recipe())
    place.set("model", path=str(result))
    place.set("run", out=str(place.folder / "y"))
    bad = _bad(place.findings())
    assert len(bad) == 1 and "merge it first" in bad[0]
