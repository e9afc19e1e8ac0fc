"""Faults of a folder that used to be a traceback, or nothing at all, are one line; `safevlm check` finds them too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safevlm.__main__ import main
from safevlm.config import LoraSettings, SafetyConfig
from safevlm.defenses import security_tensor
from safevlm.model import loading, saving
from safevlm.model.checkpoint_folder import ADAPTER_FILE, SAFETY_FILE, CheckpointError
from safevlm.model.export import SIDECAR
from safevlm.training import merge
from safevlm.training.prepare import prepare
from safevlm.training.stages import STAGES
from tests import tiny
from tests.training import workshop

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sharded`, a stock LLaVA in shards, and `adapter`, which stands on it. Read only: damage copies."""
    home = tmp_path_factory.mktemp("home")
    workshop.processor().save_pretrained(home / "sharded")
    workshop.stock().save_pretrained(home / "sharded", max_shard_size="100KB")
    loaded = loading.load(home / "sharded", safety=SafetyConfig(**tiny.SAFETY))
    lora = tiny.recipe("stage2", lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    (home / "adapter").mkdir()
    saving.save(loaded, prepare(loaded.model, STAGES["stage2"], lora), home / "adapter")
    return home


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _moved_shard(to: Callable[[Path, str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shard = next(iter(listed.values()))
        shutil.copy(folder / shard, folder.parent / shard)
        name = to(folder, shard)
        _edit(folder / INDEX, weight_map={key: name if value == shard else value for key, value in listed.items()})

    return damage


def _larger_tokenizer(folder: Path) -> None:
    processor = workshop.processor()
    processor.tokenizer = type(processor.tokenizer).from_pretrained(folder)
    processor.tokenizer.add_tokens([f"word{number}" for number in range(9)])
    processor.save_pretrained(folder)


FAULTS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "shard above": ("sharded", _moved_shard(lambda folder, shard: f"../{shard}"), (INDEX, "../")),
    "shard elsewhere": ("sharded", _moved_shard(lambda folder, shard: str(folder.parent / shard)), (INDEX, "beside")),
    "shard missing": ("sharded", _moved_shard(lambda folder, shard: "none.safetensors"), ("none.safetensors",)),
    "no table": ("sharded", lambda folder: _edit(folder / INDEX, weight_map=[]), (INDEX, "weight_map")),
    "empty table": ("sharded", lambda folder: _edit(folder / INDEX, weight_map={}), (INDEX, "weight_map")),
    "tokenizer": ("sharded", _larger_tokenizer, (str(len(workshop.tokenizer()) + 9), str(len(workshop.tokenizer())))),
    "a base that is no text": (
        "adapter",
        lambda folder: _edit(folder / "config.json", base_checkpoint=5),
        ("config.json", "base_checkpoint", "a text"),
    ),
    "tokens that are no number": (
        "adapter",
        lambda folder: _edit(folder / "config.json", safety={**tiny.SAFETY, "lm_tokens": "3"}),
        ("config.json", "safety.lm_tokens", "a whole number"),
    ),
    "a list for a table": (
        "adapter",
        lambda folder: _edit(folder / "config.json", policy=[1]),
        ("config.json", "policy", "a table"),
    ),
    "alpha": (
        "adapter",
        lambda folder: _edit(folder / "adapter_config.json", lora_alpha=float("nan")),
        ("adapter_config.json", "NaN"),
    ),
    "alpha's type": (
        "adapter",
        lambda folder: _edit(folder / "adapter_config.json", lora_alpha="much"),
        ("adapter_config.json", "lora_alpha"),
    ),
    "library": (
        "adapter",
        lambda folder: _edit(
            folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="megatron.of_the_folder"
        ),
        ("adapter_config.json", "megatron_config"),
    ),
    "another kind of adapter": (
        "adapter",
        lambda folder: _edit(folder / "adapter_config.json", peft_type="IA3"),
        ("adapter_config.json", "peft_type", "LORA"),
    ),
    "a base's name that is no text": (
        "adapter",
        lambda folder: _edit(folder / "adapter_config.json", base_model_name_or_path=5),
        ("adapter_config.json", "base_model_name_or_path"),
    ),
    "a section that is a property": ("adapter", lambda folder: _edit(folder / "config.json", taxonomy=[]), ()),
    "a list for transformers' table": ("sharded", lambda folder: _edit(folder / "config.json", text_config=[]), ()),
    "a text for transformers' number": (
        "sharded",
        lambda folder: _edit(folder / "config.json", image_token_index="x"),
        ("image_token_index",),
    ),
    "a processor that is a number": (
        "sharded",
        lambda folder: _edit(folder / "processor_config.json", image_processor=5),
        (),
    ),
    "a special token that is a number": (
        "sharded",
        lambda folder: _edit(folder / "tokenizer_config.json", bos_token=5),
        ("bos_token",),
    ),
    "a length that is a text": (
        "sharded",
        lambda folder: _edit(folder / "tokenizer_config.json", model_max_length="x"),
        ("tokenizer_config.json", "model_max_length"),
    ),
    "an end that is a text": (
        "sharded",
        lambda folder: _edit(folder / "generation_config.json", eos_token_id="x"),
        ("generation_config.json", "eos_token_id"),
    ),
    "token": (
        "adapter",
        lambda folder: _edit(folder / "adapter_config.json", trainable_token_indices={"embed_tokens": [3, 10**6]}),
        ("adapter_config.json", "1000000", str(len(workshop.tokenizer()))),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_folder_is_one_line_when_it_loads_and_when_it_is_checked(
    home: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, damage, parts = FAULTS[name]
    folder = Path(shutil.copytree(home / kind, tmp_path / "in" / kind))
    damage(folder)
    with pytest.raises(CheckpointError) as error:
        loading.load(folder)
    message = str(error.value)
    assert all(part in message for part in (str(folder), *parts)) and "\n" not in message, message
    assert main(["check", str(folder)]) == 1
    assert all(part in capsys.readouterr().out for part in parts[:1])


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_save_of_weights_that_are_no_numbers_names_one(home: Path, tmp_path: Path, value: float, word: str) -> None:
    loaded = loading.load(home / "sharded", safety=SafetyConfig(**tiny.SAFETY))
    with torch.no_grad():
        loaded.model.safety_head.level.bias[1] = value
    with pytest.raises(CheckpointError, match=rf"safety_head\.level\.bias is {word}"):
        saving.save(loaded, loaded.model, tmp_path)
    assert not list(tmp_path.iterdir()), "a checkpoint that cannot be used was left behind"


@pytest.mark.parametrize("kind", ["safety", "full", "guarded"])
def test_a_guard_of_weights_that_are_no_numbers_does_not_load(home: Path, tmp_path: Path, kind: str) -> None:
    folder, file = _guarded(home, tmp_path, kind)
    tensors = load_file(file)
    name = next(name for name in tensors if "safety_head" in name)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="safety_head.* is NaN") as error:
        loading.load(folder)
    assert str(folder) in str(error.value)


def _guarded(home: Path, tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """A folder of the kind and the file with its guard."""
    loaded = loading.load(home / "sharded", safety=SafetyConfig(**tiny.SAFETY))
    (tmp_path / "safety").mkdir()
    saving.save(loaded, loaded.model, tmp_path / "safety")
    if kind == "safety":
        return tmp_path / "safety", tmp_path / "safety" / SAFETY_FILE
    merge.fold(str(tmp_path / "safety"), tmp_path / kind, stock=kind == "guarded")
    file = "model.safetensors" if kind == "full" else f"{SIDECAR}/{SAFETY_FILE}"
    return tmp_path / kind, tmp_path / kind / file


@pytest.mark.parametrize("stock", [False, True])
def test_a_merge_of_weights_that_are_no_numbers_names_one(home: Path, tmp_path: Path, stock: bool) -> None:
    folder = Path(shutil.copytree(home / "adapter", tmp_path / "adapter"))
    tensors = load_file(folder / ADAPTER_FILE)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / ADAPTER_FILE)
    with pytest.raises(ValueError, match=r"lora_.* is NaN"):
        merge.fold(str(folder), tmp_path / "out", stock=stock)
    assert not (tmp_path / "out").exists()


def test_a_security_tensor_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    values = torch.full((2, 4), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        security_tensor.write(file, security_tensor.SecurityTensor("textual", values))
    assert not list(tmp_path.iterdir())
