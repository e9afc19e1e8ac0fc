"""What an audit lists, training leaves out: `data.exclude`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from safevlm.config import DataConfig
from safevlm.data.exclude import exclude_images, line_of
from safevlm.data.records import Record
from safevlm.training import recipe as recipes
from safevlm.training import run
from tests.training import workshop


def _record(name: str, *images: Path) -> Record:
    return Record(id=name, place=name, messages=(), images=images)


def _data(folder: Path, *lines: str, images: str = "") -> DataConfig:
    (folder / "exclude.txt").write_text("".join(lines), encoding="utf-8")
    return DataConfig(train=[str(folder / "train.jsonl")], images=images, exclude=[str(folder / "exclude.txt")])


def test_listed_images_go_by_absolute_or_relative_path_and_all_else_stays(tmp_path: Path) -> None:
    records = [_record(name, tmp_path / "images" / f"{name}.png") for name in "abcd"] + [_record("words")]
    data = _data(tmp_path, line_of(str(tmp_path / "images" / "b.png")), "\n", line_of("images/./d.png"))
    kept, dropped = exclude_images(records, data)
    assert [record.id for record in kept] == ["a", "c", "words"] and dropped == 2
    assert exclude_images(records, dataclasses.replace(data, exclude=[])) == (records, 0)


def test_relative_lines_start_from_the_folder_of_the_images(tmp_path: Path) -> None:
    records = [_record("a", tmp_path / "elsewhere" / "a.png"), _record("b", tmp_path / "a.png")]
    kept, _ = exclude_images(records, _data(tmp_path, "a.png\n", images=str(tmp_path / "elsewhere")))
    assert [record.id for record in kept] == ["b"]


def test_one_listed_image_is_enough_to_drop_a_record_of_several(tmp_path: Path) -> None:
    records = [_record("two", tmp_path / "a.png", tmp_path / "b.png"), _record("one", tmp_path / "a.png")]
    kept, dropped = exclude_images(records, _data(tmp_path, "b.png\n"))
    assert [record.id for record in kept] == ["one"] and dropped == 1


def test_a_folder_reached_by_a_link_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    records = [_record("a", tmp_path / "link" / "a.png"), _record("b", tmp_path / "link" / "b.png")]
    kept, _ = exclude_images(records, _data(tmp_path, line_of(str(tmp_path / "real" / "a.png"))))
    assert [record.id for record in kept] == ["b"]


@pytest.mark.parametrize("name", ["line\nbreak.png", '"quoted.png', " spaces .png", "é ü.png", "a\u2028b.png"])
def test_names_of_any_kind_survive_the_list(tmp_path: Path, name: str) -> None:
    records = [_record("odd", tmp_path / name), _record("plain", tmp_path / "plain.png")]
    kept, _ = exclude_images(records, _data(tmp_path, line_of(str(tmp_path / name))))
    assert [record.id for record in kept] == ["plain"]


@pytest.mark.parametrize(
    ("lines", "told"), [("gone.png\n", "none of the 1 listed"), ("a.png\n", "no record is left"), ('"a\n', ":1:")]
)
def test_a_list_that_fits_nothing_or_everything_is_an_error(tmp_path: Path, lines: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"data.exclude: .*{told}"):
        exclude_images([_record("a", tmp_path / "a.png")], _data(tmp_path, lines))


def test_a_missing_list_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = DataConfig(train=["x"], exclude=[str(tmp_path / "gone.txt")])
    with pytest.raises(ValueError, match=r"gone\.txt: no such file"):
        exclude_images([_record("a")], data)


def test_an_empty_list_changes_nothing(tmp_path: Path) -> None:
    records = [_record("a", tmp_path / "a.png")]
    assert exclude_images(records, _data(tmp_path)) == (records, 0)


def test_training_leaves_out_what_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = workshop.stock_folder(tmp_path / "base")
    data = workshop.save_rows(tmp_path / "train.jsonl", workshop.rows(tmp_path, 12))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    (tmp_path / "exclude.txt").write_text("".join(line_of(str(tmp_path / row["image"])) for row in rows[:3]))
    recipe = workshop.recipe(
        base,
        data,
        tmp_path / "out",
        data={"train": [str(data)], "exclude": [str(tmp_path / "exclude.txt")]},
        optim={"batch_size": 3, "accumulation": 1},
    )
    trainers = workshop.watch(monkeypatch)
    result = run.train(recipe)
    fed = {name for names in trainers[0].fed for name in names}
    assert fed == {row["id"] for row in rows[3:]}
    assert json.loads((result / "run.json").read_text())["records"]["all"] == 9


def test_the_flag_is_known(tmp_path: Path) -> None:
    resolved = workshop.recipe(tmp_path, tmp_path / "x.jsonl", tmp_path / "out", loss={"lm": 1.0})
    (tmp_path / "recipe.yaml").write_text(run.provenance.recipe_yaml(resolved))
    parsed = recipes.parse([str(tmp_path / "recipe.yaml"), "--data.exclude", '["a.txt"]'])
    assert parsed.data.exclude == ["a.txt"]
