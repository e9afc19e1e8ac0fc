"""Learning a probe: what it is taught is what the engine will show it, and which recipes and records are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from safevlm.config import LossWeights, ProbeSettings, Recipe, SafetyConfig
from safevlm.data.records import RecordError, read_records
from safevlm.defenses import probe_file
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.training import probe_stage
from safevlm.training.run import train
from safevlm.training.stages import STAGES
from tests import tiny
from tests.training import workshop

BARE = SafetyConfig(**{**tiny.SAFETY, **tiny.BARE})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    workshop.stock_folder(folder / "base")
    rows = workshop.rows(folder / "data")
    for row in rows[::5]:  # a conversation: the last question is the one that is learned from
        row["conversations"] += [{"from": "USER", "value": "And?"}, {"from": "ASSISTANT", "value": "Nothing."}]
    workshop.save_rows(folder / "data/train.jsonl", rows)
    return folder


def _recipe(home: Path, out: Path, **sections: Any) -> Recipe:
    probe = sections.pop("probe", {"layers": [1, 2], "tokens": 4, "hidden": 32})
    given: dict[str, Any] = {
        "model": {"safety": BARE},
        "loss": {"lm": 0.0, "level": 1.0, "category": 1.0},
        "optim": {"lr": 0.01, "epochs": 200, "batch_size": 8, "accumulation": 1},
    } | sections
    made = workshop.recipe(home / "base", home / "data/train.jsonl", out, "probe", **given)
    return dataclasses.replace(made, probe=ProbeSettings(**probe))


@pytest.mark.slow
def test_a_probe_sees_in_the_engine_what_it_was_taught(home: Path, tmp_path: Path) -> None:
    """Few records and a wide probe: it knows them by heart, if the engine shows it the very same states."""
    final = train(_recipe(home, tmp_path / "run"))
    assert {"probe.safetensors", "recipe.yaml", "run.json"} == {file.name for file in final.iterdir()}
    engine = Engine.load(home / "base", defense=f"probe={final}", device="cpu")
    records = read_records([home / "data/train.jsonl"], DEFAULT)
    verdicts = [engine.look(probe_stage.request_of(record)) for record in records]
    assert not any(verdict.error for verdict in verdicts)
    seen = [(DEFAULT.level_id(verdict.level), DEFAULT.category_id(verdict.category)) for verdict in verdicts]
    assert seen == [(record.safe_level, record.safe_type) for record in records]


@pytest.mark.slow
def test_the_same_recipe_makes_the_same_probe(home: Path, tmp_path: Path) -> None:
    files = [train(_recipe(home, tmp_path / name, optim={"epochs": 2})) / probe_file.FILE for name in "ab"]
    one, other = (probe_file.read(file, DEFAULT) for file in files)
    assert workshop.same_tensors(one.probe.state_dict(), other.probe.state_dict())
    assert one.about == other.about and one.layers == (1, 2)


def test_a_conversation_is_asked_up_to_its_last_question(home: Path) -> None:
    record = read_records([home / "data/train.jsonl"], DEFAULT)[0]
    request = probe_stage.request_of(record)
    assert (request.text, len(request.history), request.images_per_turn) == ("And?", 1, (1, 0))
    assert request.history[0][1] and "<image>" not in request.history[0][0]
    assert request.images == record.images


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"loss": LossWeights(1.0, 1.0, 1.0)}, "loss.lm"),
        ({"model.safety": SafetyConfig()}, "model.safety"),
        ({"data.hints": True}, "data.hints"),
        ({"run.deepspeed": "zero2"}, "run.deepspeed"),
    ],
)
def test_settings_that_a_probe_cannot_use_are_named(change: dict[str, Any], key: str, home: Path) -> None:
    recipe = _recipe(home, home / "none")
    for path, value in change.items():
        section, _, name = path.partition(".")
        new = dataclasses.replace(getattr(recipe, section), **{name: value}) if name else value
        recipe = dataclasses.replace(recipe, **{section: new})
    with pytest.raises(ValueError, match=key):
        STAGES["probe"].check_recipe(recipe)


@pytest.mark.parametrize("layers", [[0], [1, 1], [-2]])
def test_layers_that_are_none_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="probe.layers"):
        ProbeSettings(layers=layers)


def test_a_layer_behind_the_last_is_refused_and_the_default_lies_behind_the_middle(home: Path) -> None:
    recipe = _recipe(home, home / "none", probe={"layers": [3]})
    with pytest.raises(ValueError, match=r"probe.layers: 3; .* has 2"):
        probe_stage.layers_of(recipe, 2)
    recipe = dataclasses.replace(recipe, probe=ProbeSettings())
    assert [probe_stage.layers_of(recipe, depth) for depth in (1, 2, 4, 32)] == [(1,), (2,), (3,), (17,)]


def test_labels_of_one_kind_or_none_are_refused(home: Path) -> None:
    recipe = _recipe(home, home / "none")
    records = read_records([home / "data/train.jsonl"], DEFAULT)
    clean = [record for record in records if record.safe_level == 0]
    bare = [dataclasses.replace(record, safe_level=None, safe_type=None) for record in records]
    in_words = dataclasses.replace(recipe, probe=ProbeSettings(words=True))
    assert probe_stage.check_records(records, recipe) == {"probe": len(records)}
    for wrong, asked in ((clean, recipe), (bare, recipe), (records, in_words)):
        with pytest.raises(RecordError, match=r"train\.jsonl.*labels"):
            probe_stage.check_records(wrong, asked)


def test_records_without_a_label_do_not_move_the_probe() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    labels = torch.tensor([0, -100, 2, -100])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    assert torch.isclose(probe_stage._cross_entropy(logits, labels), expected)
    assert probe_stage._cross_entropy(logits[[1]], labels[[1]]) == 0
