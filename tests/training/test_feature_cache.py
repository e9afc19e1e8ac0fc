"""The frozen tower runs once an image, and what is learned is what is learned without the cache, bit for bit."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_patch import parts, vision
from safevlm.config import Recipe, SafetyConfig
from safevlm.data.record_table import open_records
from safevlm.model.checkpoint_folder import FINAL, SAFETY_FILE
from safevlm.training import feature_cache, feature_shards, start
from safevlm.training.arguments import training_arguments
from safevlm.training.feature_shards import FeatureCache
from safevlm.training.prepare import prepare
from safevlm.training.run import train
from safevlm.training.stages import stage_of
from safevlm.training.trainer import SafeTrainer
from tests import tiny
from tests.holding import holding
from tests.training import workshop
from tests.training.launching import fork

IMAGES, EPOCHS = 16, 2
READS_TEXT = SafetyConfig(**{**tiny.SAFETY, "reads_text": True})
IMAGE_BYTES = workshop.PATCHES * 32 * 4 + feature_shards.EXTRA
"""Of an image in a file; the tower is 32 wide, in float32."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `data/train.jsonl` of records with an image each, and `data/mixed.jsonl`. Read only."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data", IMAGES))
    workshop.rows(home / "data", IMAGES)
    return home


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every pass of the vision tower from now on."""
    passes: list[int] = []
    encode = vision.encode_images

    def counted(model: Any, pixel_values: Tensor) -> vision.VisionPass:
        passes.append(len(pixel_values))
        return encode(model, pixel_values)

    monkeypatch.setattr(vision, "encode_images", counted)
    return passes


def _recipe(
    home: Path,
    out: Path,
    cache: Path | str = "",
    gb: float = 1.0,
    file: str = "train.jsonl",
    **sections: Any,
) -> Recipe:
    data = {"feature_cache": str(cache), "feature_cache_gb": gb, **sections.pop("data", {})}
    optim = {"epochs": EPOCHS, "accumulation": 1, **sections.pop("optim", {})}
    return workshop.recipe(
        home / "base", home / "data" / file, out, loss={"lm": 0.0}, data=data, optim=optim, **sections
    )


def _open(recipe: Recipe) -> FeatureCache | None:
    """What a run of the recipe trains with, without training."""
    loaded = start.load(recipe)
    prepare(loaded.safe_llava, stage_of(recipe), recipe)
    records = open_records(recipe.data.train, loaded.safe_llava.config.taxonomy, recipe.data.images)
    return feature_cache.open_cache(recipe, loaded, records, training_arguments(recipe))


def _kept(recipe: Recipe) -> FeatureCache:
    cache = _open(recipe)
    assert cache is not None
    return cache


def _weights(final: Path) -> dict[str, Tensor]:
    return load_file(final / SAFETY_FILE)


def _images(home: Path) -> list[Path]:
    return [home / "data" / json.loads(line)["image"] for line in (home / "data" / "train.jsonl").open()]


def _copy(home: Path, folder: Path) -> Path:
    shutil.copytree(home, folder)
    return folder


# Training


@pytest.mark.parametrize(
    "sections",
    [
        {},
        pytest.param({"run": {"bf16": True}}, marks=pytest.mark.slow),
        pytest.param({"data": {"workers": 2}}, marks=pytest.mark.slow),
        pytest.param({"model": {"safety": READS_TEXT}}, marks=pytest.mark.slow),
    ],
    ids=["plain", "bf16", "workers", "reads-text"],
)
def test_what_is_learned_is_bit_for_bit_what_is_learned_without(
    home: Path, tmp_path: Path, tower: list[int], sections: dict[str, Any]
) -> None:
    without = _weights(train(_recipe(home, tmp_path / "without", gb=0.0, **sections)))
    assert sum(tower) == EPOCHS * IMAGES
    tower.clear()
    first = _weights(train(_recipe(home, tmp_path / "first", tmp_path / "kept", **sections)))
    assert sum(tower) == IMAGES + 1, "each image once, and a blank one that tells what an image takes"
    tower.clear()
    second = _weights(train(_recipe(home, tmp_path / "second", tmp_path / "kept", **sections)))
    assert tower == [], "a later run finds everything"
    assert workshop.same_tensors(without, first) and workshop.same_tensors(without, second)


@pytest.mark.slow
def test_records_without_an_image_and_images_beyond_the_bound_train_as_without(home: Path, tmp_path: Path) -> None:
    """Batches then hold some images that are kept and some that are not; the tower sees fewer at a time."""
    without = _weights(train(_recipe(home, tmp_path / "without", gb=0.0, file="mixed.jsonl")))
    some = 7 * IMAGE_BYTES / 1e9
    kept = _weights(train(_recipe(home, tmp_path / "some", tmp_path / "kept", gb=some, file="mixed.jsonl")))
    assert without.keys() == kept.keys()
    for name, weight in without.items():
        torch.testing.assert_close(kept[name], weight, rtol=1e-4, atol=1e-6)


def test_a_run_that_names_no_folder_leaves_none(home: Path, tmp_path: Path, tower: list[int]) -> None:
    final = train(_recipe(home, tmp_path / "out", run={"save_steps": 100}))
    assert sum(tower) == IMAGES + 1
    assert FINAL in {path.name for path in final.parent.iterdir()}
    assert feature_cache.FOLDER not in {path.name for path in final.parent.iterdir()}


@pytest.mark.parametrize(("end", "left"), [(RuntimeError, False), (KeyboardInterrupt, True)])
def test_a_run_that_fails_leaves_none_and_one_that_is_stopped_leaves_it_to_go_on_with(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException], left: bool
) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise end

    monkeypatch.setattr(SafeTrainer, "train", ended)
    with pytest.raises(end):
        train(_recipe(home, tmp_path / "out"))
    assert (tmp_path / "out" / feature_cache.FOLDER).exists() == left


@pytest.mark.parametrize("optim", [{"epochs": 1}, {"max_steps": 4}], ids=["one epoch", "steps of one epoch"])
def test_a_run_over_one_epoch_keeps_nothing_unless_a_folder_is_named(
    home: Path, tmp_path: Path, optim: dict[str, Any]
) -> None:
    assert _open(_recipe(home, tmp_path / "out", optim=optim)) is None
    assert _open(_recipe(home, tmp_path / "out", gb=0.0)) is None
    named = _open(_recipe(home, tmp_path / "out", tmp_path / "kept", optim=optim))
    assert named is not None and len(named.rows) == IMAGES


def test_a_tower_that_trains_is_refused_a_folder(home: Path, tmp_path: Path) -> None:
    for cache in ("", tmp_path / "kept"):
        recipe = _recipe(home, tmp_path / "out", cache)
        loaded = start.load(recipe)
        prepare(loaded.safe_llava, stage_of(recipe), recipe)
        next(parts.vision_tower(loaded.safe_llava).parameters()).requires_grad = True
        if not cache:
            assert feature_cache.open_cache(recipe, loaded, [], training_arguments(recipe)) is None
            continue
        with pytest.raises(ValueError, match=r"data\.feature_cache.*tower"):
            feature_cache.open_cache(recipe, loaded, [], training_arguments(recipe))


@pytest.mark.parametrize("section", [{"loss": {"lm": 1.0}}, {"run": {"deepspeed": "zero2"}, "loss": {"lm": 0.0}}])
def test_a_named_folder_is_refused_where_the_tower_is_not_alone(section: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.feature_cache"):
        workshop.recipe(Path("base"), Path("x"), Path("out"), data={"feature_cache": "kept"}, **section)


# What is found again


def _other_tower(home: Path) -> None:
    file = home / "base" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "vision" in name and name.endswith("mlp.fc1.weight"))
    weights[name][1, 1] += 1e-3  # one value of one weight
    save_file(weights, file, metadata={"format": "pt"})


def _other_layer(home: Path) -> None:
    _edit(home / "base" / "config.json", lambda table: table.update(vision_feature_layer=-1))


def _other_preprocessing(home: Path) -> None:
    _edit(home / "base" / "processor_config.json", lambda table: table["image_processor"].update(image_mean=[0.4] * 3))


def _other_image(home: Path) -> None:
    first = _images(home)[0]
    ImageOps.invert(Image.open(first).convert("RGB")).save(first)


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(file.read_text(encoding="utf-8"))
    change(table)
    file.write_text(json.dumps(table), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (_other_tower, IMAGES + 1),
        (_other_layer, IMAGES + 1),
        (_other_preprocessing, IMAGES + 1),
        (_other_image, 1),
    ],
)
def test_an_entry_of_something_else_is_never_used(
    home: Path, tmp_path: Path, tower: list[int], change: Callable[[Path], None], computed: int
) -> None:
    own = _copy(home, tmp_path / "home")
    before = _kept(_recipe(own, tmp_path / "out", tmp_path / "kept"))
    first = _images(own)[0]
    old = before(first)
    change(own)
    tower.clear()
    after = _kept(_recipe(own, tmp_path / "out", tmp_path / "kept"))
    assert sum(tower) == computed
    new, fresh = after(first), _kept(_recipe(own, tmp_path / "out", tmp_path / "fresh"))(first)
    assert old is not None and new is not None and fresh is not None
    torch.testing.assert_close(new, fresh)
    assert not torch.equal(new, old)


def test_an_image_is_kept_once_whatever_its_name(home: Path, tmp_path: Path, tower: list[int]) -> None:
    own = _copy(home, tmp_path / "home")
    first, second, *_ = _images(own)
    shutil.copy(first, second)
    cache = _kept(_recipe(own, tmp_path / "out", tmp_path / "kept"))
    assert sum(tower) == IMAGES - 1 + 1
    one, other = cache(first), cache(second)
    assert one is not None and other is not None and torch.equal(one, other)


# The bound


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_the_folder_stays_within_its_bound(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: list[int]
) -> None:
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 4)
    room = 10 * IMAGE_BYTES + 100
    recipe = _recipe(home, tmp_path / "out", tmp_path / "kept", gb=room / 1e9)
    assert 0 < len(_kept(recipe).rows) < IMAGES
    assert _bytes(tmp_path / "kept") <= room
    own = _copy(home, tmp_path / "home")
    _other_tower(own)
    cache = _kept(_recipe(own, tmp_path / "out", tmp_path / "kept", gb=room / 1e9))
    assert 0 < len(cache.rows) < IMAGES, "what the run has no use for makes room"
    assert all(cache(Path(path)) is not None for path in cache.rows)
    assert _bytes(tmp_path / "kept") <= room
    files = set(feature_shards.files_in(tmp_path / "kept"))
    tower.clear()
    _open(_recipe(own, tmp_path / "out", tmp_path / "kept", gb=room / 1e9))
    assert set(feature_shards.files_in(tmp_path / "kept")) == files and sum(tower) == 0, "what is used stays"


@pytest.mark.parametrize("gb", [1e-9, IMAGE_BYTES / 2e9])
def test_where_no_image_fits_nothing_is_written(home: Path, tmp_path: Path, gb: float) -> None:
    assert not _kept(_recipe(home, tmp_path / "out", tmp_path / "kept", gb=gb)).rows
    assert _bytes(tmp_path / "kept") == 0


# Damage, kills, and others in the same folder


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


def _flipped(file: Path) -> None:
    """One bit of one number, which safetensors itself does not notice."""
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header + json.loads(data[8:header])["patches"]["data_offsets"][0]] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_truncated, _emptied, _flipped])
def test_damaged_files_are_told_and_not_used(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    recipe = _recipe(home, tmp_path / "out", tmp_path / "kept")
    first = _kept(recipe)
    whole = {path: patches for path in _images(home) if (patches := first(path)) is not None}
    (file,) = feature_shards.files_in(tmp_path / "kept")
    damage(file)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cache = _kept(recipe)
        found = {path: cache(path) for path in whole}
    assert str(file) in caplog.text and "damaged" in caplog.text
    assert len(caplog.records) == 1
    for path, patches in found.items():
        assert patches is None or torch.equal(patches, whole[path])
    assert sum(patches is None for patches in found.values()) == (damage is _flipped)


def test_a_file_that_goes_away_while_a_run_reads_it_costs_the_run_nothing_but_time(home: Path, tmp_path: Path) -> None:
    cache = _kept(_recipe(home, tmp_path / "out", tmp_path / "kept"))
    shutil.rmtree(tmp_path / "kept")
    assert cache(_images(home)[0]) is None


def test_a_start_that_was_killed_is_gone_on_with(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: list[int]
) -> None:
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 4)
    write = feature_shards.write
    written: list[Any] = []

    def killed(*arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    recipe = _recipe(home, tmp_path / "out", tmp_path / "kept")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(feature_shards, "write", killed)
        _open(recipe)
    (tmp_path / "kept" / ".features-0-0.safetensors.1.1").write_bytes(b"half")
    tower.clear()
    cache = _kept(recipe)
    assert sum(tower) == IMAGES - 8 and len(cache.rows) == IMAGES
    assert all(file.name.startswith(feature_shards.PREFIX) for file in (tmp_path / "kept").iterdir())


def test_a_folder_that_cannot_be_written_costs_the_run_nothing_but_time(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert _open(_recipe(home, tmp_path / "out", tmp_path / "kept")) is None
    assert str(tmp_path / "kept") in caplog.text


def test_a_full_disk_ends_the_filling_and_not_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "kept")

    monkeypatch.setattr(feature_shards, "write", full)
    with caplog.at_level(logging.WARNING):
        assert not _kept(_recipe(home, tmp_path / "out", tmp_path / "kept")).rows
    assert "No space left" in caplog.text


def test_a_folder_that_another_run_fills_is_read_and_not_written(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tower: list[int]
) -> None:
    lines = (home / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (home / "data" / "few.jsonl").write_text("\n".join(lines[:8]), encoding="utf-8")
    _open(_recipe(home, tmp_path / "out", tmp_path / "kept", file="few.jsonl"))
    tower.clear()
    kept = tmp_path / "kept"
    with holding(kept / feature_cache.LOCK), caplog.at_level(logging.WARNING):
        assert len(_kept(_recipe(home, tmp_path / "out", tmp_path / "kept")).rows) == 8
    assert tower == [] and "another process" in caplog.text
    assert len(_kept(_recipe(home, tmp_path / "out", tmp_path / "kept")).rows) == IMAGES


# Several processes


@pytest.mark.slow
def test_two_processes_fill_one_folder_and_learn_what_one_learns(home: Path, tmp_path: Path) -> None:
    model = {"safety": SafetyConfig(**{**tiny.SAFETY, "lm_tokens": 0})}
    one = train(_recipe(home, tmp_path / "one", gb=0.0, model=model))
    recipe = _recipe(home, tmp_path / "two", tmp_path / "kept", optim={"batch_size": 2}, model=model)
    two = fork("torchrun", recipe, tmp_path)
    files = feature_shards.files_in(tmp_path / "kept")
    assert [len(feature_shards.digests_of(file) or ()) for file in files] == [IMAGES // 2] * 2
    single, together = workshop.history(one), workshop.history(two)
    assert len(single) == len(together) == EPOCHS * IMAGES // 4
    for before, now in zip(single, together, strict=True):
        assert [now[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [before[key] for key in ("loss", "grad_norm")], rel=1e-3
        )
