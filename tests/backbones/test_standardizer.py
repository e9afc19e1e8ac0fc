"""A safety projector that reads standardised patches: whose numbers they are, who keeps them, and what they are for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from safevlm import recipes
from safevlm.config import LoraSettings, LossWeights, ProjectorKind, Recipe, SafetyConfig
from safevlm.data.pixels import read_images
from safevlm.model import loading, projector, saving
from safevlm.model.standardizer import Standardizer, statistics
from safevlm.training import standardizing
from safevlm.training.merge import fold
from safevlm.training.recipe import parse
from safevlm.training.run import train
from tests.backbones import families, small_runs

FAMILY = "qwen3_vl"
MEAN, STD = "safety_standardizer.mean", "safety_standardizer.std"
SAFETY = replace(families.SAFETY, projector_standardize=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stock`, `data.json`, and a stage 1 on them: `first`."""
    home = tmp_path_factory.mktemp("home")
    families.saved(FAMILY, home / "stock")
    small_runs.data(home)
    train(_recipe(home, "first"))
    return home


def _recipe(home: Path, out: str, start: str = "stock", stage: str = "stage1", **settings: Any) -> Recipe:
    return small_runs.recipe(home, stage, home / start, out, safety=SAFETY, **settings)


def _numbers(folder: Path) -> tuple[Tensor, Tensor]:
    tensors = load_file(folder / "safety.safetensors")
    return tensors[MEAN], tensors[STD]


def _same(folder: Path, other: Path) -> bool:
    return all(map(torch.equal, _numbers(folder), _numbers(other)))


def test_numbers_are_mean_and_spread_of_what_the_head_reads_of_the_training_images(home: Path) -> None:
    loaded = loading.load(home / "stock")
    images = [[Image.open(home / f"{index}.png")] for index in range(6)]
    seen = torch.cat(loaded.model.encode_images(read_images(loaded.processor, images)).patches)
    mean, std = _numbers(home / "first" / "final")
    assert torch.allclose(mean, seen.mean(0), atol=1e-5)
    assert torch.allclose(std, seen.std(0, unbiased=False), atol=1e-5)


def test_head_only_training_takes_the_same_numbers(home: Path) -> None:
    final = train(_recipe(home, "head", lm_tokens=0, loss=LossWeights(lm=0)))
    assert _same(final, home / "first" / "final")


@pytest.mark.slow
def test_whoever_goes_on_from_a_checkpoint_keeps_its_numbers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming, more of stage 1, stage 2, merging and the export for servers."""
    whole = train(_recipe(home, "whole", run={"save_steps": 1, "keep": 9}))
    monkeypatch.setattr(standardizing, "statistics", None)
    shutil.copytree(home / "whole" / "checkpoint-1", home / "again" / "checkpoint-1")
    again = train(_recipe(home, "again", run={"save_steps": 1, "keep": 9}))
    resumed, straight = load_file(again / "safety.safetensors"), load_file(whole / "safety.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())

    more = train(_recipe(home, "more", "first/final"))
    second = train(_recipe(home, "two", "first/final", "stage2", lora=LoraSettings(r=2, alpha=4, dropout=0)))
    assert _same(more, home / "first" / "final") and _same(second, home / "first" / "final")
    fold(str(second), home / "merged")
    merged = loading.load(home / "merged").model.state_dict()
    assert all(map(torch.equal, (merged[MEAN], merged[STD]), _numbers(second)))
    fold(str(home / "first" / "final"), home / "guarded", stock=True)
    assert _same(home / "guarded" / "safety", home / "first" / "final")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_arrive_whole_whatever_the_frozen_weights_are_held_in(home: Path, dtype: torch.dtype) -> None:
    model = loading.load(home / "first" / "final", dtype=dtype).model
    assert all(
        map(torch.equal, (model.state_dict()[MEAN], model.state_dict()[STD]), _numbers(home / "first" / "final"))
    )


def test_numbers_that_a_launcher_rounded_are_saved_whole(home: Path, tmp_path: Path) -> None:
    loaded = loading.load(home / "first" / "final")
    loaded.model.safety_standardizer.bfloat16()  # as DeepSpeed does to the whole model
    saving.save(loaded, loaded.model, tmp_path)
    assert _same(tmp_path, home / "first" / "final")


def test_a_checkpoint_without_its_numbers_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "first" / "final", tmp_path / "torn")
    tensors = load_file(tmp_path / "torn" / "safety.safetensors")
    del tensors[STD]
    save_file(tensors, tmp_path / "torn" / "safety.safetensors", metadata={"format": "pt"})
    with pytest.raises(loading.CheckpointError, match=r"safety\.safetensors"):
        loading.load(tmp_path / "torn")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_when_a_run_goes_on_from_it(home: Path) -> None:
    train(_recipe(home, "hurt", run={"save_steps": 1, "keep": 9}))
    shutil.rmtree(home / "hurt" / "final")
    for folder in (home / "hurt").glob("checkpoint-*"):
        (folder / "safety.safetensors").write_bytes(b"no")
    with pytest.raises(loading.CheckpointError, match=r"checkpoint-2.*--run\.resume false"):
        train(_recipe(home, "hurt", run={"save_steps": 1, "keep": 9}))


def test_numbers_are_of_a_bounded_number_of_images(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standardizing, "IMAGES", 2)
    counted = []
    monkeypatch.setattr(standardizing, "statistics", lambda images: counted.extend(images) or statistics(counted))
    train(_recipe(home, "few", optim={"max_steps": 1, "warmup_steps": 0}))
    assert len(counted) == 2


def test_a_model_that_has_seen_no_image_reads_patches_as_they_are() -> None:
    patches = torch.randn(2, 5, 8)
    assert torch.equal(Standardizer(8)(patches), patches)


def test_no_shipped_recipe_standardizes_unasked() -> None:
    assert not any(
        "projector_standardize" in file.read_text(encoding="utf-8") for file in recipes.shipped("recipe").values()
    )
    asked = parse(["vlm_stage1_head_only", "--model.safety.projector_standardize", "true"])
    assert asked.model.safety.projector_standardize


def test_a_model_that_is_not_asked_has_no_weights_for_it(home: Path) -> None:
    names = loading.load(home / "stock", safety=families.SAFETY).model.state_dict()
    assert not any("standardizer" in name for name in names)


def test_a_channel_that_hardly_moves_is_not_blown_up() -> None:
    images = [torch.tensor([[0.0, 3.0, 5.0], [2.0, 3.0, 5.0 + 1e-6]])]
    mean, std = statistics(images)
    assert torch.allclose(mean, torch.tensor([1.0, 3.0, 5.0])) and std[0] == 1
    assert std[1] == 1 and 0.001 < std[2] < 0.01


@pytest.mark.parametrize("kind", ["mlp", "resampler"])
def test_a_projector_learns_from_patches_with_a_large_part_in_common(kind: ProjectorKind) -> None:
    assert _accuracy(kind, standardized=True) > 0.95 and _accuracy(kind, standardized=False) < 0.6


def _accuracy(kind: ProjectorKind, standardized: bool) -> float:
    """Of four classes, after 40 steps; what tells them apart is a hundredth of a patch, the rest the same for all."""
    torch.manual_seed(0)
    common = 100 * functional.normalize(torch.randn(32), dim=0)
    labels = torch.arange(64) % 4
    own = functional.normalize(torch.randn(4, 32), dim=1)[labels]
    patches = common + own[:, None] + 0.1 * torch.randn(64, 4, 32)
    read = Standardizer(32)
    if standardized:
        read.mean, read.std = statistics(patches)
    safety = SafetyConfig(projector=kind, projector_width=16, projector_depth=1, projector_tokens=4)
    inner, head = projector.build(safety, 32, 16), nn.Linear(16, 4)
    assert inner is not None
    weights = [*inner.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(40):
        loss = functional.cross_entropy(head(inner(read(patches)).mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return float((head(inner(read(patches)).mean(1)).argmax(1) == labels).float().mean())
