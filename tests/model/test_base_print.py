"""A guard, a LoRA or a learned input on a base that is not its own is an error, and a copy of its base is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_patch import fingerprint
from safevlm.__main__ import main
from safevlm.config import LoraSettings, SafetyConfig
from safevlm.defenses import security_tensor
from safevlm.engine import Engine
from safevlm.model import base_print, export, loading, saving
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.training import merge
from safevlm.training.prepare import prepare
from safevlm.training.run import train
from safevlm.training.stages import STAGES
from tests import tiny
from tests.training import workshop

STANDING = ("safety", "adapter")
WEIGHTS = "model.safetensors"
PARTS = {
    "vision tower": "vision_tower",
    "projector": "multi_modal_projector",
    "embeddings": "embed_tokens",
    "LLM": r"language_model.*layers\.1\.mlp",
    "lm_head": "lm_head",
}
"""Part → what the names of its weights match."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`; `safety` and `adapter` that stand on it, the adapter as stage 2 of `safety`; `guarded`. Read only."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    loaded = loading.load(home / "base", safety=SafetyConfig(**tiny.SAFETY))
    (home / "safety").mkdir()
    saving.save(loaded, loaded.model, home / "safety")
    stage1 = loading.load(home / "safety")
    lora = tiny.recipe("stage2", lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    (home / "adapter").mkdir()
    saving.save(stage1, prepare(stage1.model, STAGES["stage2"], lora), home / "adapter")
    merge.fold(str(home / "adapter"), home / "guarded", stock=True)
    return home


def _changed(folder: Path, to: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy whose weights are other ones, of the same shapes."""
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    change(tensors)
    save_file(tensors, to / WEIGHTS, metadata={"format": "pt"})
    return to


def _shuffle(part: str) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if re.search(PARTS[part], name)]:
            tensors[name] = tensors[name].flip(0).contiguous()

    return change


def _message(error: pytest.ExceptionInfo[Any], *parts: object) -> None:
    message = str(error.value)
    assert all(str(part) in message for part in parts) and "\n" not in message, message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", STANDING)
def test_another_base_of_the_same_shapes_is_an_error_that_names_both(
    home: Path, tmp_path: Path, kind: str, part: str
) -> None:
    other = _changed(home / "base", tmp_path / "other", _shuffle(part))
    with pytest.raises(CheckpointError) as error:
        loading.load(home / kind, base=other, lm=part in ("LLM", "lm_head"))
    _message(error, home / kind, other, home / "base", part)
    with pytest.raises(ValueError, match=part):
        merge.fold(str(home / kind), tmp_path / "merged", base=str(other))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("part", fingerprint.ROWS)
def test_another_row_of_a_single_token_is_another_base(home: Path, tmp_path: Path, part: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        (name,) = (name for name in tensors if re.search(PARTS[part], name))
        tensors[name][7] = tensors[name][11]

    other = _changed(home / "base", tmp_path / "other", change)
    with pytest.raises(CheckpointError, match=rf"{other}.*: {part} differ"):
        loading.load(home / "adapter", base=other)


def test_fingerprints_from_before_rows_were_told_still_fit(home: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(home / "adapter", tmp_path / "old"))
    known = base_print.read(old)
    assert known is not None
    base_print.write(old, known[0], {part: known[1][part] for part in fingerprint.PARTS})
    assert loading.load(old).kind == "adapter"


def test_check_says_the_same(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _changed(home / "base", tmp_path / "other", _shuffle("vision tower"))
    assert main(["check", str(home / "adapter"), "--base", str(other)]) == 1
    assert "vision tower differ" in capsys.readouterr().out
    main(["check", str(home / "adapter")])
    assert "differ" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["vision tower", "projector", "embeddings"])
def test_a_guard_whose_model_was_exchanged_is_an_error(home: Path, tmp_path: Path, part: str) -> None:
    folder = _changed(home / "guarded", tmp_path / "guarded", _shuffle(part))
    with pytest.raises(CheckpointError) as error:
        loading.load(folder)
    _message(error, folder, part, "adapter", "--stock")


def test_an_llm_tuned_further_beside_a_guard_is_told(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _changed(home / "guarded", tmp_path / "guarded", _shuffle("LLM"))
    assert loading.load(folder).kind == "guarded"
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "LLM" in caplog.text


COPIES: dict[str, dict[str, Any]] = {
    "moved": {},
    "shards": {"max_shard_size": "60KB"},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", [*STANDING, "guarded"])
def test_a_copy_of_the_base_is_the_base(home: Path, tmp_path: Path, kind: str, how: str) -> None:
    """Moved, in other shards, or rounded to half precision; as transformers itself writes it."""
    options = dict(COPIES[how])
    folder = home / ("guarded" if kind == "guarded" else "base")
    copy = Path(shutil.copytree(folder, tmp_path / "moved" / "copy"))
    (copy / WEIGHTS).unlink()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=options.pop("dtype", torch.float32))
    model.save_pretrained(copy, **options)
    assert len(list(copy.glob("*.safetensors"))) > 1 or how != "shards"
    assert (loading.load(copy) if kind == "guarded" else loading.load(home / kind, base=copy)).kind == kind


@pytest.mark.parametrize("naming", ["published", "in memory"])
def test_names_of_another_release_are_the_same_base(home: Path, tmp_path: Path, naming: str) -> None:
    from tests.model.test_llava_hf_layouts import NAMINGS

    copy = Path(shutil.copytree(home / "base", tmp_path / "copy"))
    state = LlavaForConditionalGeneration.from_pretrained(home / "base").state_dict()
    named = {NAMINGS[naming](name): tensor.contiguous() for name, tensor in state.items()}
    save_file(named, copy / WEIGHTS, metadata={"format": "pt"})
    assert loading.load(home / "adapter", base=copy).kind == "adapter"


@pytest.mark.parametrize("kind", STANDING)
def test_a_folder_from_before_fingerprints_loads_with_one_warning(
    home: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = Path(shutil.copytree(home / kind, tmp_path / "old"))
    (old / base_print.FILE).unlink()
    loading.load(old)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(old) in caplog.text and all(part in caplog.text for part in PARTS)


@pytest.mark.slow
def test_a_chain_keeps_the_first_base(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stage 2 on a stage-1 folder, resumed; and stage 1 anew on what was merged from it."""
    data = workshop.save_rows(tmp_path / "some.jsonl", workshop.rows(tmp_path, 6))
    final = train(workshop.recipe(home / "safety", data, tmp_path / "two", "stage2"))
    again = loading.load(final)
    assert again.kind == "adapter" and again.base == (home / "base").resolve()
    merge.fold(str(final), tmp_path / "full")
    third = train(workshop.recipe(tmp_path / "full", data, tmp_path / "three"))
    assert loading.load(third).base == (tmp_path / "full").resolve()
    assert not [record for record in caplog.records if base_print.FILE in record.getMessage()]


def test_a_run_does_not_go_on_upon_another_base(home: Path, tmp_path: Path) -> None:
    data = workshop.save_rows(tmp_path / "some.jsonl", workshop.rows(tmp_path, 6))
    base = Path(shutil.copytree(home / "base", tmp_path / "base"))
    run = {"save_steps": 1, "resume": True}
    train(workshop.recipe(base, data, tmp_path / "run", optim={"epochs": 2, "accumulation": 1}, run=run))
    shutil.rmtree(tmp_path / "run" / "final")
    _shuffle_in_place(base)
    newest = max((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(newest)
    with pytest.raises(ValueError) as error:
        train(workshop.recipe(base, data, tmp_path / "run", optim={"epochs": 2, "accumulation": 1}, run=run))
    _message(error, base, "content")


def _shuffle_in_place(base: Path) -> None:
    tensors = load_file(base / WEIGHTS)
    _shuffle("vision tower")(tensors)
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})


def test_a_security_tensor_in_front_of_another_model_is_an_error(home: Path, tmp_path: Path) -> None:
    loaded = loading.load(home / "base")
    values = torch.zeros(2, workshop.WIDTH)
    about = {"base": str(home / "base")}
    file = tmp_path / security_tensor.file_name("textual")
    security_tensor.write(
        file, security_tensor.SecurityTensor("textual", values, "start", about, loaded.base_fingerprints)
    )
    defense = f"security-tensor:textual={file}"
    assert Engine.load(home / "base", defense=defense, device="cpu")
    other = _changed(home / "base", tmp_path / "other", _shuffle("LLM"))
    with pytest.raises(ValueError) as error:
        Engine.load(other, defense=defense, device="cpu")
    _message(error, file, home / "base", "LLM")


def test_a_damaged_print_is_an_error_of_one_line(home: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(home / "safety", tmp_path / "damaged"))
    (folder / base_print.FILE).write_bytes(b"12345678")
    with pytest.raises(CheckpointError) as error:
        loading.load(folder)
    _message(error, folder / base_print.FILE)


def test_a_print_is_small_and_names_no_place_in_an_export(home: Path) -> None:
    file = home / "guarded" / export.SIDECAR / base_print.FILE
    weights = load_file(home / "base" / WEIGHTS)
    tensors = sum(weight.is_floating_point() for weight in weights.values())
    rows = sum(len(weight) for name, weight in weights.items() if "embed_tokens" in name or "lm_head" in name)
    assert file.stat().st_size < 2000 + (tensors * fingerprint.VALUES + rows) * 4
    assert str(home).encode() not in file.read_bytes()
    assert "base" not in json.loads((home / "guarded" / export.SIDECAR / "config.json").read_text(encoding="utf-8"))
