"""Which checkpoint a run goes on from, when it refuses to, and what becomes of an earlier run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.config import Recipe
from safevlm.data.sources.fingerprints import file_digest
from safevlm.training import inputs, resume
from tests.training import workshop

Sections = dict[str, dict[str, Any]]


def _recipe(out: Path, stage: str = "stage1", **sections: dict[str, Any]) -> Recipe:
    home = out.parent / f"{out.name}-home"
    home.mkdir(exist_ok=True)
    (home / "x.jsonl").exists() or (home / "x.jsonl").write_text("{}\n")
    return workshop.recipe(home / "base", home / "x.jsonl", out, stage, **sections)


def _newest(out: Path, processes: int, **run: Any) -> str | None:
    return resume.newest(_recipe(out, run=run), processes)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of two processes with two checkpoints."""
    for step in (2, 10):
        workshop.pretended_checkpoint(_recipe(tmp_path / "out", run={"deepspeed": None}), step, processes=2)
    return tmp_path / "out"


def test_newest_is_by_number_not_by_spelling(out: Path) -> None:
    assert _newest(out, 2) == str(out / "checkpoint-10")


def test_nothing_to_resume(out: Path, tmp_path: Path) -> None:
    assert _newest(out, 2, resume=False) is None
    assert _newest(tmp_path / "gone", 2) is None


def test_deepspeed_under_another_number_of_processes_says_why_not(tmp_path: Path) -> None:
    last = workshop.pretended_checkpoint(_recipe(tmp_path / "out", run={"deepspeed": "zero2"}), 10, processes=2)
    with pytest.raises(ValueError) as error:
        _newest(tmp_path / "out", 4, deepspeed="zero2")
    for part in (str(last), "2 processes", "has 4", "--model.path", "--run.out"):
        assert part in str(error.value)
    assert _newest(tmp_path / "out", 2, deepspeed="zero2")


def test_torchrun_may_go_on_with_another_number_and_is_told(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _newest(out, 1) == str(out / "checkpoint-10")
    assert "another size" in caplog.text


def test_a_run_is_done_when_its_last_step_is_saved() -> None:
    recipe = workshop.recipe(Path("base"), Path("x"), Path("out"), optim={"max_steps": 10})
    assert resume.is_done("out/checkpoint-10", recipe) and not resume.is_done("out/checkpoint-9", recipe)
    endless = workshop.recipe(Path("base"), Path("x"), Path("out"))
    assert not resume.is_done("out/checkpoint-10", endless)


# Another run in the folder

OTHER: dict[str, tuple[Sections, tuple[str, ...]]] = {
    "lr": ({"optim": {"lr": 0.5}}, ("optim.lr 0.003 -> 0.5",)),
    "two keys": (
        {"optim": {"schedule": "linear"}, "run": {"seed": 7}},
        ('optim.schedule "cosine" -> "linear"', "run.seed 256 -> 7"),
    ),
    "loss": ({"loss": {"level": 1.0}}, ("loss.level 10.0 -> 1.0",)),
    "lora": ({"lora": {"r": 8}}, ("lora.r 4 -> 8",)),
    "clean": ({"data": {"clean": 5}}, ("data.clean null -> 5",)),
    "images": ({"data": {"images": "elsewhere"}}, ('data.images "" -> "elsewhere"',)),
    "hints": ({"data": {"hints": True}}, ("data.hints false -> true",)),
    "model": ({"model": {"path": "another/model"}}, ("model.path", "another/model")),
    "quantize": ({"model": {"quantize": "nf4"}}, ('model.quantize "none" -> "nf4"',)),
    "batch": ({"optim": {"batch_size": 2}}, ("optim.batch_size 4 -> 2",)),
    "bf16": ({"run": {"bf16": True}}, ("run.bf16 false -> true",)),
    "fewer epochs": ({"optim": {"epochs": 0.5}}, ("optim.epochs 1 epochs -> 0.5 epochs (shorter)",)),
    "fewer steps": ({"optim": {"max_steps": 5}}, ("optim.max_steps 1 epochs -> 5 steps (shorter)",)),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_recipe_is_refused_by_what_differs_and_touches_nothing(out: Path, name: str) -> None:
    sections, told = OTHER[name]
    before = workshop.file_bytes(out)
    with pytest.raises(ValueError) as error:
        resume.newest(_recipe(out, **sections), 2)
    for part in (*told, str(out), "--run.out", "--run.resume false"):
        assert part in str(error.value)
    assert str(error.value).count("->") == len(told) or name == "model", "keys that do not differ are named"
    assert workshop.file_bytes(out) == before


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"log_steps": 7, "save_steps": 3, "keep": 1, "report_to": ["tensorboard"]}},
        {"optim": {"epochs": 5}},
        {"optim": {"max_steps": 20}},
        {"data": {"workers": 2, "verify_images": False}},
        {},
    ],
)
def test_logging_keeping_and_a_longer_run_may_differ(out: Path, sections: Sections) -> None:
    assert resume.newest(_recipe(out, **sections), 2) == str(out / "checkpoint-10")


def test_stage_2_in_the_folder_of_stage_1_says_so(out: Path) -> None:
    with pytest.raises(ValueError) as error:
        resume.newest(_recipe(out, "stage2", optim={"lr": 1.0}), 2)
    assert "stage1" in str(error.value) and "stage2" in str(error.value) and "--run.out" in str(error.value)
    assert "optim.lr" not in str(error.value), "whoever takes the wrong folder needs no list of settings"


def _edited(recipe: Recipe) -> None:
    Path(recipe.data.train[0]).write_text('{"id": "other"}\n')


def _copied(recipe: Recipe) -> None:
    shutil.copy(recipe.data.train[0], Path(recipe.data.train[0]).with_name("copy.jsonl"))


def _noted(out: Path, recipe: Recipe) -> None:
    """A checkpoint with today's record of what the run read."""
    shutil.rmtree(out, ignore_errors=True)
    workshop.pretended_checkpoint(recipe, 4, inputs=inputs.as_record(inputs.read(recipe)))


def test_data_are_compared_by_content(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = _recipe(out)
    _noted(out, recipe)
    assert json.loads((out / "checkpoint-4" / "run.json").read_text())["inputs"]["data.train"] == [
        {"path": recipe.data.train[0], "digest": file_digest(Path(recipe.data.train[0]))}
    ]
    _copied(recipe)
    moved = str(Path(recipe.data.train[0]).with_name("copy.jsonl"))
    assert resume.newest(_recipe(out, data={"train": [moved]}), 1), "the same records under another name are the same"
    _edited(recipe)
    with pytest.raises(ValueError, match="data.train .*x.jsonl -> other content"):
        resume.newest(recipe, 1)


def test_a_model_is_compared_by_its_weights_and_not_by_its_place(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", _recipe(tmp_path / "out")
    workshop.stock_folder(Path(recipe.model.path))
    _noted(out, recipe)
    shutil.copytree(recipe.model.path, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("a card is no weight")
    assert resume.newest(_recipe(out, model={"path": str(tmp_path / "moved")}), 1)
    workshop.stock(seed=5).save_pretrained(recipe.model.path)
    with pytest.raises(ValueError, match="model.path .* other content under the same name"):
        resume.newest(recipe, 1)


def test_large_weights_are_told_by_blocks_all_over_the_file(tmp_path: Path) -> None:
    """Training changes all of them; to read 14 GB would take longer than it is worth."""
    recipe = _recipe(tmp_path / "out")
    workshop.stock_folder(Path(recipe.model.path))
    file, size = Path(recipe.model.path) / "x.safetensors", inputs.WHOLE * 2
    file.write_bytes(bytes(size))
    (before,) = inputs.read(recipe)["model.path"]
    for at in (0, size // 3 // inputs.BLOCK * inputs.BLOCK, size - 1):
        content = bytearray(size)
        content[at : at + 3 * inputs.BLOCK] = b"x" * len(content[at : at + 3 * inputs.BLOCK])
        file.write_bytes(content)
        assert inputs.read(recipe)["model.path"] != [before]


def test_a_run_of_an_earlier_version_goes_on_with_one_warning(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _newest(out, 2)
    told = [record.getMessage() for record in caplog.records if "earlier version" in record.getMessage()]
    assert len(told) == 1 and "data.train" in told[0] and "model.path" in told[0] and str(out) in told[0]


def test_a_key_that_an_old_recipe_lacks_has_its_default(out: Path) -> None:
    file = out / "checkpoint-10" / "recipe.yaml"
    table = yaml.safe_load(file.read_text())
    del table["optim"]["gradient_checkpointing"], table["optim"]["weight_decay"], table["data"]["group_by"]
    file.write_text(yaml.safe_dump(table))
    assert _newest(out, 2)
    with pytest.raises(ValueError, match="optim.weight_decay 0.0 -> 0.1"):
        resume.newest(_recipe(out, optim={"weight_decay": 0.1}), 2)


# Broken checkpoints


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(table | values))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no recipe": (_drop("recipe.yaml"), "recipe.yaml"),
    "recipe is no YAML": (_write("recipe.yaml", "a: [1"), "recipe.yaml"),
    "recipe is a list": (_write("recipe.yaml", "[1]"), "recipe.yaml"),
    "recipe is binary": (lambda folder: (folder / "recipe.yaml").write_bytes(b"\xff\xfe\x00"), "recipe.yaml"),
    "duration is a word": (_write("recipe.yaml", "optim: {epochs: many}"), "recipe.yaml"),
    "no record": (_drop("run.json"), "run.json"),
    "record is cut": (_write("run.json", '{"processes": 1'), "run.json"),
    "record is a list": (_write("run.json", "[]"), "run.json"),
    "processes is a word": (_edit("run.json", processes="two"), "run.json"),
    "inputs is a number": (_edit("run.json", inputs=5), "run.json"),
    "inputs of another shape": (_edit("run.json", inputs={"data.train": [{"x": 1}]}), "run.json"),
    "no state": (_drop("trainer_state.json"), "trainer_state.json"),
    "state is empty": (_write("trainer_state.json", ""), "trainer_state.json"),
    "step is a word": (_edit("trainer_state.json", global_step="ten"), "trainer_state.json"),
    "step of another checkpoint": (_edit("trainer_state.json", global_step=9), "trainer_state.json"),
    "history is a number": (_edit("trainer_state.json", log_history=5), "trainer_state.json"),
    "history of words": (_edit("trainer_state.json", log_history=["x"]), "trainer_state.json"),
    "unknown key": (_edit("trainer_state.json", nonsense=1), "trainer_state.json"),
    "no optimiser": (_drop("optimizer.pt"), "optimizer.pt"),
    "no schedule": (_drop("scheduler.pt"), "scheduler.pt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_one_line_with_its_file_and_the_fix(out: Path, name: str) -> None:
    break_it, file = BROKEN[name]
    break_it(out / "checkpoint-10")
    with pytest.raises(ValueError) as error:
        _newest(out, 2)
    assert str(out / "checkpoint-10") in str(error.value) and file in str(error.value)
    assert "remove the folder" in str(error.value)
    shutil.rmtree(out / "checkpoint-10")
    assert _newest(out, 2) == str(out / "checkpoint-2"), "the advice helps"


# Where a run may write


def test_a_run_never_writes_where_it_starts_from(tmp_path: Path) -> None:
    first = tmp_path / "first"
    workshop.stock_folder(first / "final")
    workshop.stock_folder(tmp_path / "base")
    wrong = [(first / "final", first), (first, first), (first, first / "next"), (tmp_path / "base", tmp_path / "base")]
    wrong += [(tmp_path / "base", tmp_path / "base" / "runs" / "x"), (first, first / "final" / "x")]
    for start, out in wrong:
        with pytest.raises(ValueError, match="run.out: .*model.path"):
            resume.check_places(workshop.recipe(start, tmp_path / "x", out))
    for start, out in [(tmp_path / "base", first), (first, tmp_path / "second"), (tmp_path / "base", tmp_path)]:
        resume.check_places(workshop.recipe(start, tmp_path / "x", out))


def test_an_earlier_run_is_moved_aside_and_never_over_another(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    (out / "final").mkdir()
    before = workshop.file_bytes(out)
    assert resume.set_aside(out) == out / "earlier-1"
    assert set(path.name for path in out.iterdir()) == {"earlier-1", "notes.txt"}, "what no run wrote stays"
    moved = {f"earlier-1/{name}" if name != "notes.txt" else name: content for name, content in before.items()}
    assert workshop.file_bytes(out) == moved
    assert resume.set_aside(out) is None, "there is nothing left to move"
    workshop.pretended_checkpoint(dataclasses.replace(_recipe(out)), 2)
    assert resume.set_aside(out) == out / "earlier-2"
