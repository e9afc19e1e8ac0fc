"""No folder's own code runs, whoever loads it, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_patch.clip import read_text_space
from safevlm.__main__ import main
from safevlm.defenses.rewards import RewardModel
from safevlm.evaluation.judges import client
from safevlm.model import loading

ROOT = Path(__file__).parents[2]
BASE = ROOT / "checkpoints" / "miniature"
EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({flag!r}).touch()
class Evil:
    pass
"""
# file, key of the class that transformers lacks, key in auto_map
PLANTS = {
    "tokenizer": ("tokenizer_config.json", "tokenizer_class", "AutoTokenizer", [None, "evil.Evil"]),
    "processor": ("processor_config.json", "processor_class", "AutoProcessor", "evil.Evil"),
    "config": ("config.json", "model_type", "AutoConfig", "evil.Evil"),
}
LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "checkpoint": ("", lambda folder: loading.load(folder)),
    "judge": ("", lambda folder: client._load(folder, "cpu")),
    "reward": ("", lambda folder: RewardModel(folder, "", "cpu")._loaded),
    "clip": ("clip", lambda folder: read_text_space(folder, ["a word"])),
}


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked whether a checkpoint's code may run")

    monkeypatch.setattr(builtins, "input", asked)


def _planted(tmp_path: Path, part: str, inside: str) -> tuple[Path, Path]:
    """A copy of the base in which `part` needs a class of its own; and the file that appears when its code runs."""
    folder, flag = tmp_path / "planted", tmp_path / "it-ran"
    shutil.copytree(BASE / inside, folder)
    file, key, auto, named = PLANTS[part]
    table = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).exists() else {}
    table |= {key: "Evil" if key != "model_type" else "evil", "auto_map": {auto: named}}
    (folder / file).write_text(json.dumps(table), encoding="utf-8")
    (folder / "evil.py").write_text(EVIL.format(flag=str(flag)), encoding="utf-8")
    return folder, flag


@pytest.mark.parametrize("part", PLANTS)
@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_folder_never_runs(tmp_path: Path, loader: str, part: str, nobody_is_asked: None) -> None:
    inside, load = LOADERS[loader]
    folder, flag = _planted(tmp_path, part, inside)
    try:
        load(folder)
    except Exception as error:  # noqa: BLE001 - whatever it raises, but not that somebody was asked
        assert not isinstance(error, AssertionError), error
    assert not flag.exists() and not (folder / "ran").exists(), f"{loader}: code beside {PLANTS[part][0]} ran"


@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_the_refusal_names_file_and_class(tmp_path: Path, part: str, nobody_is_asked: None) -> None:
    folder, _ = _planted(tmp_path, part, "")
    with pytest.raises(ValueError) as caught:
        loading.load(folder)
    told = str(caught.value)
    assert told.startswith(f"{folder / PLANTS[part][0]}: ") and "evil.Evil" in told, "names another file first"


@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_check_finds_it_too(
    tmp_path: Path, part: str, nobody_is_asked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, flag = _planted(tmp_path, part, "")
    assert main(["check", str(folder)]) == 1
    assert "evil.Evil" in capsys.readouterr().out and not flag.exists()


KERNELS: dict[str, dict[str, Any]] = {
    "a name": {"attn_implementation": "someone/kernel"},
    "a name for each part": {"attn_implementation": {"text_config": "someone/kernel"}},
    "as transformers holds it": {"_attn_implementation_internal": "someone/kernel"},
    "in a part's own config": {"text_config": {"more": [{"_attn_implementation": "paged|someone/kernel@main:fn"}]}},
    "of experts": {"experts_implementation": "someone/kernel"},
}


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_from_a_hub_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "kernel"
    shutil.copytree(BASE, folder)
    table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, value in KERNELS[kind].items():
        table[key] = table[key] | value if key in table else value
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    for load in (loading.load, lambda path: client._load(path, "cpu")):
        with pytest.raises(ValueError, match="someone/kernel"):
            load(folder)


ELSEWHERE = {
    ("safevlm/model/stored.py", "PeftModel"),  # `check_adapter` has let a LoRA through, which names no library
    ("safevlm/check/checkpoint.py", "LoraConfig"),
    (
        "safevlm/check/checkpoint.py",
        "families.classes_of(config).model",
    ),  # of no folder: from a config and names of weights
}


def test_everything_else_goes_through_the_one_door() -> None:
    found = {
        (str(file.relative_to(ROOT)), ast.unparse(node.func.value))
        for room in ("safevlm", "llava_patch")
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    }
    found -= {("llava_patch/pretrained.py", "kind")}
    assert found == ELSEWHERE, "call llava_patch.pretrained.from_folder instead"
