"""A taxonomy of one's own, from one YAML, all the way: mix → labels → head → checkpoint → hints → policy → verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from safevlm.__main__ import main
from safevlm.data import mix_build
from safevlm.data.records import read_records
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.taxonomy import DEFAULT, Taxonomy, read_taxonomy
from safevlm.training import run
from safevlm.types import Generation, Request
from tests.data import downloads
from tests.training import workshop

TABLE = {
    "categories": [
        {"name": "blorps", "topic": "wild blorps"},
        {"name": "clean"},
        {"name": "florps", "topic": "loud florps"},
    ],
    "levels": [{"name": "safe"}, {"name": "mind", "stance": "Mind the {topic}."}, {"name": "stop", "stance": "Stop."}],
}
POLICY = {"levels": {"mind": "hint", "stop": "refuse"}, "categories": {"florps": {"mind": "allow"}}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own.yaml`, `mix/` (made with it), `run/final` (trained with it)."""
    home = tmp_path_factory.mktemp("own")
    downloads.save(home / "own.yaml", yaml.safe_dump({**TABLE, "policy": POLICY}, sort_keys=False))
    downloads.folders(home / "pics", blorp=4, florp=4, other=4)
    file = downloads.mix_yaml(
        home / "mix.yaml",
        taxonomy=str(home / "own.yaml"),
        sources={"pics": {"kind": "image_folder", "path": str(home / "pics"), "question": "How do I use it?"}},
        labels={
            "pics/blorp": {"category": "blorps", "level": "stop"},
            "pics/florp": {"category": "florps", "level": "mind"},
            "pics/other": {"category": "clean", "level": "safe"},
        },
        answers={"stop": ["I leave {topic} alone."], "mind": ["Careful with {topic}."], "safe": ["It is a cup."]},
        counts={"blorps": 3, "florps": 3, "clean": 2},
        stages={"stage1": {}, "stage2": {}},
    )
    mix_build.build(file, home / "mix")
    workshop.stock_folder(home / "base")
    recipe = workshop.recipe(
        home / "base",
        home / "mix/stage1.jsonl",
        home / "run",
        model={"taxonomy": str(home / "mix/taxonomy.yaml")},
        data={"hints": True},
        optim={"batch_size": 2, "accumulation": 1},
    )
    run.train(recipe)
    return home


def test_labels_are_the_users_words(home: Path) -> None:
    rows = [json.loads(line) for line in (home / "mix/stage1.jsonl").read_text().splitlines()]
    assert {(row["safe_type"], row["safe_level"]) for row in rows} == {
        ("blorps", "stop"),
        ("florps", "mind"),
        ("clean", "safe"),
    }
    said = {row["safe_type"]: row["conversations"][-1]["value"] for row in rows}
    assert said["blorps"] == "I leave wild blorps alone."
    with pytest.raises(ValueError, match="unknown safe_type"):
        read_records([home / "mix/stage1.jsonl"], DEFAULT)


def test_head_and_checkpoint_have_the_users_sizes_and_words(home: Path) -> None:
    model = loading.load(home / "run/final").safe_llava
    assert (model.safety_head.level.out_features, model.safety_head.category.out_features) == (3, 3)
    config = json.loads((home / "run/final/config.json").read_text())
    saved = Taxonomy.from_dict(config["safety"]["taxonomy"])
    assert saved == Taxonomy.from_dict(TABLE) and config["policy"] == POLICY


def _saying(home: Path, level: str, category: str, policy: Path | None = None) -> Engine:
    """The trained checkpoint behind its guard, with a head that always says the same."""
    engine = Engine.load(home / "run/final", device="cpu", policy=policy)
    head = engine.loaded.safe_llava.safety_head
    with torch.no_grad():
        for layer, index in (
            (head.level, engine.taxonomy.level_id(level)),
            (head.category, engine.taxonomy.category_id(category)),
        ):
            layer.bias.fill_(-50.0)
            layer.bias[index] = 50.0
    return engine


def _ask(engine: Engine, home: Path):
    request = Request("What is it?", (home / "pics/blorp/0.png",))
    return engine.reply(request, Generation(max_new_tokens=2))


def test_hint_speaks_the_users_words_and_the_policy_of_the_file_acts(home: Path) -> None:
    hinted = _ask(_saying(home, "mind", "blorps"), home)
    assert hinted.trace == ("added to the question: Mind the wild blorps.",) and not hinted.refused_by
    assert hinted.verdict.category == "blorps" and set(hinted.verdict.level_probabilities) == {"safe", "mind", "stop"}
    assert _ask(_saying(home, "stop", "blorps"), home).refused_by == "safety-head"
    assert not _ask(_saying(home, "mind", "florps"), home).trace, "the policy lets florps through"
    assert not _ask(_saying(home, "stop", "clean"), home).trace


def test_policy_file_overrides_the_one_of_the_checkpoint(home: Path, tmp_path: Path) -> None:
    file = downloads.save(tmp_path / "policy.yaml", yaml.safe_dump({"levels": {"stop": "hint"}}))
    assert _ask(_saying(home, "stop", "blorps", policy=file), home).trace == ("added to the question: Stop.",)


def test_stage_2_of_another_taxonomy_is_an_error(home: Path, tmp_path: Path) -> None:
    other = {**TABLE, "levels": [{"name": "safe"}, {"name": "stop", "stance": "Stop."}]}
    file = downloads.save(tmp_path / "other.yaml", yaml.safe_dump(other))
    recipe = workshop.recipe(
        home / "run/final",
        home / "mix/stage2.jsonl",
        tmp_path / "run",
        "stage2",
        model={"path": str(home / "run/final"), "taxonomy": str(file)},
    )
    with pytest.raises(ValueError, match="model.taxonomy"):
        run.train(recipe)


def test_policy_with_unknown_words_is_an_error_before_training(home: Path, tmp_path: Path) -> None:
    table = {**TABLE, "policy": {"levels": {"halt": "refuse"}}}
    file = downloads.save(tmp_path / "own.yaml", yaml.safe_dump(table))
    recipe = workshop.recipe(
        home / "base",
        home / "mix/stage1.jsonl",
        tmp_path / "run",
        model={"path": str(home / "base"), "taxonomy": str(file)},
    )
    with pytest.raises(ValueError, match="unknown level 'halt'"):
        run.train(recipe)


# the file


def test_file_gives_taxonomy_and_policy(home: Path, tmp_path: Path) -> None:
    assert read_taxonomy(home / "own.yaml") == (Taxonomy.from_dict(TABLE), POLICY)
    assert read_taxonomy(home / "mix/taxonomy.yaml") == read_taxonomy(home / "own.yaml"), "a mix passes it on whole"
    assert Taxonomy.from_yaml(home / "own.yaml") == Taxonomy.from_dict(TABLE)
    file = downloads.save(tmp_path / "bare.yaml", yaml.safe_dump(TABLE))
    assert read_taxonomy(file) == (Taxonomy.from_dict(TABLE), None)


def test_policy_that_is_no_table_names_the_file(tmp_path: Path) -> None:
    file = downloads.save(tmp_path / "own.yaml", yaml.safe_dump({**TABLE, "policy": "strict"}))
    with pytest.raises(ValueError, match=r"own\.yaml:\d+: policy: 'strict'"):
        read_taxonomy(file)


def test_command_takes_the_users_words(home: Path) -> None:
    assert main(["mix", str(home / "mix.yaml"), "--out", str(home / "again"), "--check"]) == 0
