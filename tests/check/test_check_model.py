"""`safevlm check MODEL`: every kind of folder that training and merging leave, and what can be wrong with one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safevlm.check import checkpoint, model
from safevlm.check.lazy_parts import run
from safevlm.model import checkpoint_folder, loading
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.training.merge import merge
from safevlm.training.run import train
from tests.training import workshop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stock, safety, adapter and full, by the names of their kinds."""
    folder = tmp_path_factory.mktemp("kinds")
    workshop.stock_folder(folder / "stock")
    data = workshop.save_rows(folder / "train.jsonl", workshop.rows(folder, 8))
    train(workshop.recipe(folder / "stock", data, folder / "safety"))
    second = workshop.recipe(folder / "safety", data, folder / "adapter", "stage2")
    train(second)
    merge(str(folder / "adapter"), folder / "full")
    return folder


def _bad(path: Path, base: str | None = None) -> list[str]:
    found = run(model.CHECKS, model.Subject(path, base))
    return [f"{one.title}\n{one.detail}" for one in found if one.mark == "✗"]


@pytest.mark.parametrize("kind", ["stock", "safety", "adapter", "full"])
def test_every_kind_of_checkpoint_is_fine(folders: Path, kind: str) -> None:
    found = list(run(model.CHECKS, model.Subject(folders / kind)))
    assert all(one.ok for one in found), [one.title for one in found if not one.ok]
    assert f"({kind})" in found[0].title


def test_the_shipped_miniature_is_fine() -> None:
    assert _bad(ROOT / "checkpoints" / "miniature") == []


def _drop(file: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        tensors = load_file(folder / file)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, folder / file)

    return plant


def _reshape(file: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        tensors = load_file(folder / file)
        tensors[sorted(tensors)[0]] = torch.zeros(1, 2, 3)
        save_file(tensors, folder / file)

    return plant


def _config(**fields: Any) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**table, **fields}), encoding="utf-8")

    return plant


def _tokens(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["image_token_id"] = config["image_token_index"] = 5
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "plant", "told"),
    [
        ("safety", _drop("safety.safetensors"), "1 weights missing: safety_"),
        ("safety", _reshape("safety.safetensors"), "1 weights of another shape: safety_"),
        ("safety", lambda folder: (folder / "safety.safetensors").unlink(), "safety.safetensors: missing"),
        ("adapter", _drop("adapter_model.safetensors"), "1 weights missing: base_model."),
        ("adapter", _reshape("adapter_model.safetensors"), "1 weights of another shape: base_model."),
        ("full", _drop("model.safetensors"), "1 weights missing"),
        ("full", _config(policy={"levels": {"nope": "hint"}}), "policy: "),
        ("safety", _config(base_checkpoint="/nowhere"), "its base model is not at /nowhere"),
        ("stock", _tokens, "<image> is 4 for the tokenizer, 5 in config.json"),
        ("stock", lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    ],
)
def test_one_defect_is_one_finding(
    folders: Path, tmp_path: Path, kind: str, plant: Callable[[Path], None], told: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_folder.resolve(folders / kind), copy)
    plant(copy)
    bad = _bad(copy)
    assert len(bad) == 1 and told in bad[0], bad


def test_a_base_that_has_moved_is_found_by_its_flag(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "safety" / "final", tmp_path / "copy")
    _config(base_checkpoint="/nowhere")(tmp_path / "copy")
    assert _bad(tmp_path / "copy", base=str(folders / "stock")) == []


def test_weights_in_shards_are_all_looked_at(tmp_path: Path) -> None:
    workshop.stock().save_pretrained(tmp_path / "many", max_shard_size="100KB")
    workshop.processor().save_pretrained(tmp_path / "many")
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 1 and _bad(tmp_path / "many") == []
    shards[0].unlink()
    assert "weight files are missing" in _bad(tmp_path / "many")[0]


def test_pickled_weights_are_looked_at_too(tmp_path: Path) -> None:
    workshop.stock_folder(tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    assert _bad(tmp_path / "old") == []
    del tensors[sorted(tensors)[0]]
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    assert "1 weights missing" in _bad(tmp_path / "old")[0]


def test_the_check_and_the_loader_agree_about_missing_weights(folders: Path, tmp_path: Path) -> None:
    """Names on disk are not those of the model; the check must not have a table of its own that goes out of date."""
    shutil.copytree(folders / "stock", tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    for name in sorted(tensors)[::9]:
        save_file(
            {other: tensor for other, tensor in tensors.items() if other != name},
            tmp_path / "copy" / "model.safetensors",
            metadata={"format": "pt"},
        )
        told = list(checkpoint.incomplete(checkpoint.of_folder(tmp_path / "copy")))
        with pytest.raises(CheckpointError, match="1 weights missing") as error:
            loading.load(tmp_path / "copy")
        assert len(told) == 1 and told[0].rsplit(": ", 1)[1] in str(error.value), name


def test_an_image_processor_says_whether_it_pads_or_crops(folders: Path) -> None:
    found = {one.title.split(":")[0]: one for one in run(model.CHECKS, model.Subject(folders / "stock"))}
    assert "crops the middle" in found["processor"].detail
    assert dataclasses.asdict(found["processor"])["ok"]
