"""Checkpoint folders: what they are is told by their contents, they load strictly, and what is saved comes back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safevlm.config import LoraSettings, SafetyConfig
from safevlm.data import atomic_write
from safevlm.model import checkpoint_folder, loading, saving
from safevlm.model.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_FILE, SAFETY_FILE, CheckpointError
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import merge
from safevlm.training.prepare import prepare
from safevlm.training.stages import STAGES
from tests import tiny
from tests.training import workshop

SAFETY = SafetyConfig(**tiny.SAFETY)
KINDS = ("stock", "full", "safety", "adapter")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; `safety` and `adapter` lean on `stock`. Read only: damage copies."""
    home = tmp_path_factory.mktemp("folders")
    made = {kind: home / kind for kind in KINDS}
    workshop.stock_folder(made["stock"])
    torch.manual_seed(0)
    loaded = loading.load(made["stock"], safety=SAFETY)
    tiny.shake(loaded.model.safety_head)
    made["safety"].mkdir()
    saving.save(loaded, loaded.model, made["safety"], {"run.json": "{}"})
    wrapped = prepare(
        loaded.model, STAGES["stage2"], tiny.recipe("stage2", lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    )
    for name, weight in wrapped.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    made["adapter"].mkdir()
    saving.save(loaded, wrapped, made["adapter"], {"run.json": "{}"})
    merge.merge(str(made["adapter"]), made["full"])
    return made


def _copy(folders: dict[str, Path], kind: str, to: Path) -> Path:
    return Path(shutil.copytree(folders[kind], to / "some where" / "renamed"))


def _edit(file: Path, **changes: Any) -> None:
    table = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(table), encoding="utf-8")


def _weights_file(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def _outputs(loaded: loading.Loaded) -> list[Tensor]:
    """Logits of the LLM, and of the head where there is one."""
    inputs = tiny.batch([1, 0, 2], loaded.safe_llava.slots)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = tiny.pixels(3, size=workshop.IMAGE_SIZE)
    output = loaded.model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    return [out for out in (output.logits, output.level_logits, output.category_logits) if out is not None]


def _error(folder: Path, *parts: str, **options: Any) -> str:
    """Loading is one line that names the folder and says why; anything else would be a traceback for the user."""
    with pytest.raises(CheckpointError) as error:
        loading.load(folder, **options)
    message = str(error.value)
    for part in (str(folder), *parts):
        assert part in message, f"the message must say {part!r}: {message}"
    assert "\n" not in message
    return message


# Kinds


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_told_by_contents_wherever_the_folder_lies(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    for name in ("llava-lora-v1.5", "stock", "adapter", "final", "x"):
        moved = Path(shutil.copytree(folders[kind], tmp_path / name))
        assert checkpoint_folder.kind_of(moved) == kind, (
            f"a folder of kind {kind} was taken for another when named {name}"
        )
    loaded = loading.load(moved)
    assert loaded.kind == kind
    assert all(torch.equal(*pair) for pair in zip(_outputs(loaded), _outputs(loading.load(folders[kind])), strict=True))


def test_a_runs_folder_stands_for_its_result(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["safety"], tmp_path / "run" / "final")
    assert checkpoint_folder.resolve(tmp_path / "run") == tmp_path / "run" / "final"
    assert loading.load(tmp_path / "run").kind == "safety"


def test_folder_loads_from_any_working_directory(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["stock"].parent)
    loaded = loading.load("stock", safety=SAFETY)
    (tmp_path / "out").mkdir()
    saving.save(loaded, loaded.model, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert loading.load("out").kind == "safety", "a relative base path was written into the checkpoint"


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_moved_base_is_an_error_and_the_flag_mends_it(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    moved = _copy(folders, kind, tmp_path)
    gone = tmp_path / "gone"
    _edit(moved / "config.json", base_checkpoint=str(gone))
    _error(moved, str(gone), "--base DIR")
    loaded = loading.load(moved, base=folders["stock"])
    assert loaded.base == folders["stock"].resolve()
    assert all(torch.equal(*pair) for pair in zip(_outputs(loaded), _outputs(loading.load(folders[kind])), strict=True))
    _error(moved, str(tmp_path / "elsewhere"), "--base DIR", base=tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_base_of_another_size_is_an_error(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    wide = tiny.stock_llava(width=64, image_size=64, patch=16)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="another model: projector"):
        loading.load(folders[kind], base=tmp_path / "wide")


# What comes back


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_saved_and_loaded_gives_equal_logits(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    loaded = loading.load(folders[kind])
    (tmp_path / "again").mkdir()
    saving.save(loaded, loaded.model, tmp_path / "again", {"run.json": "{}"})
    again = loading.load(tmp_path / "again")
    pairs = list(zip(_outputs(loaded), _outputs(again), strict=True))
    assert len(pairs) == 3 and all(torch.equal(*pair) for pair in pairs)
    assert set(workshop.file_bytes(tmp_path / "again")) == set(workshop.file_bytes(folders[kind]))


def test_stock_gives_the_stock_classes_logits(folders: dict[str, Path]) -> None:
    inputs = {**tiny.batch([1, 0], workshop.PATCHES), "pixel_values": tiny.pixels(1, size=workshop.IMAGE_SIZE)}
    with torch.no_grad():
        truth = workshop.stock()(**inputs).logits
        assert torch.equal(loading.load(folders["stock"]).model(**inputs).logits, truth)


def test_adapter_is_at_work_after_loading(folders: dict[str, Path]) -> None:
    """A wrong prefix makes PEFT go on with the bare base (base facts §4.3)."""
    with_lora, without = _outputs(loading.load(folders["adapter"])), _outputs(loading.load(folders["safety"]))
    assert not torch.allclose(with_lora[0], without[0], atol=1e-3), "the LoRA changes nothing: it did not arrive"
    assert torch.allclose(with_lora[1], without[1], atol=1e-6), "the head must not depend on the LoRA"


def test_restore_brings_a_live_model_back(folders: dict[str, Path]) -> None:
    for kind in ("safety", "adapter"):
        loaded = loading.load(folders[kind])
        truth = _outputs(loaded)
        with torch.no_grad():
            for name, weight in loaded.model.named_parameters():
                if is_safety_name(name) or ".lora_" in name:
                    weight += 1
        assert not torch.equal(_outputs(loaded)[0], truth[0])
        loading.restore(loaded.model, folders[kind], loaded)
        assert all(torch.equal(*pair) for pair in zip(_outputs(loaded), truth, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_keeps_ours_in_float32(folders: dict[str, Path], kind: str) -> None:
    loaded = loading.load(folders[kind], dtype=torch.bfloat16)
    for name, weight in loaded.model.named_parameters():
        expected = torch.float32 if is_safety_name(name) or ".lora_" in name else torch.bfloat16
        assert weight.dtype == expected, name
    assert not loaded.model.training


def test_safety_of_a_recipe_is_for_checkpoints_that_have_none(folders: dict[str, Path]) -> None:
    other = SafetyConfig(**{**tiny.SAFETY, "lm_tokens": 9})
    assert loading.load(folders["stock"], safety=other).safe_llava.config.safety_config.lm_tokens == 9
    assert loading.load(folders["safety"], safety=other).safe_llava.config.safety_config.lm_tokens == 3


def test_loading_changes_no_file(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        before = workshop.file_bytes(folders[kind])
        loading.load(folders[kind])
        assert workshop.file_bytes(folders[kind]) == before


# Damage


def test_missing_folder_and_folder_without_a_model(tmp_path: Path) -> None:
    _error(tmp_path / "gone", "no such folder")
    _error(tmp_path, "no config.json")


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("stock", "multi_modal_projector"),
        ("stock", "lm_head"),
        ("full", "vision_tower"),
        ("full", "layers.1.mlp.up_proj"),
    ],
)
def test_missing_weights_are_named(folders: dict[str, Path], tmp_path: Path, kind: str, part: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    _weights_file(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])
    _error(folder, "missing", part)


def test_full_checkpoint_without_a_head_weight_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(folders, "full", tmp_path)
    _weights_file(folder, lambda tensors: tensors.pop(next(name for name in tensors if "safety_head" in name)))
    _error(folder, "missing", "safety_head")


@pytest.mark.parametrize("kind", ["stock", "full"])
def test_unexpected_weight_is_named(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    _weights_file(
        folder, lambda tensors: tensors.update({"language_model.model.layers.7.mlp.up_proj.weight": torch.ones(3)})
    )
    _error(folder, "unexpected", "layers.7")


@pytest.mark.parametrize("kind", ["stock", "full"])
def test_weight_of_another_shape_is_named(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    _weights_file(
        folder,
        lambda tensors: tensors.update(
            {n: t[:-1].clone() for n, t in tensors.items() if n.endswith("linear_2.weight")}
        ),
    )
    _error(folder, "another shape", "linear_2")


@pytest.mark.parametrize("kept", [0, -4])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("stock", "model.safetensors"),
        ("full", "model.safetensors"),
        ("safety", SAFETY_FILE),
        ("adapter", SAFETY_FILE),
        ("adapter", ADAPTER_FILE),
    ],
)
def test_truncated_weights_are_an_error(
    folders: dict[str, Path], tmp_path: Path, kind: str, name: str, kept: int
) -> None:
    folder = _copy(folders, kind, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:kept])
    _error(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("stock", "model.safetensors"),
        ("safety", SAFETY_FILE),
        ("adapter", ADAPTER_FILE),
    ],
)
def test_missing_weights_file_is_an_error(folders: dict[str, Path], tmp_path: Path, kind: str, name: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    (folder / name).unlink()
    assert "safetensors" in _error(folder)


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_safety_weights_of_another_size_are_an_error(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    tensors = load_file(folder / SAFETY_FILE)
    tensors["safety_lm_tokens.latent"] = torch.zeros(9, workshop.WIDTH)
    save_file(tensors, folder / SAFETY_FILE)
    _error(folder, SAFETY_FILE, "safety_lm_tokens.latent")


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_safety_weights_that_do_not_fit_are_an_error(folders: dict[str, Path], tmp_path: Path, change: str) -> None:
    folder = _copy(folders, "safety", tmp_path)
    tensors = load_file(folder / SAFETY_FILE)
    if change == "missing":
        del tensors["safety_lm_tokens.latent"]
    else:
        tensors["safety_more"] = torch.zeros(3)
    save_file(tensors, folder / SAFETY_FILE)
    _error(folder, SAFETY_FILE, "do not fit config.json")


@pytest.mark.parametrize("kind", ["safety", "adapter", "stock"])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"model_type": "llava",\n "text_config": ', "config.json:2: "),
        ("", "config.json:1: "),
        ("[]", "config.json"),
        ('{"model_type": "blip-2"}', "'blip-2'"),
        ("{}", "None"),
    ],
)
def test_wrong_config_is_an_error(folders: dict[str, Path], tmp_path: Path, kind: str, content: str, part: str) -> None:
    folder = _copy(folders, kind, tmp_path)
    (folder / "config.json").write_text(content, encoding="utf-8")
    _error(folder, part)


def test_wrong_safety_section_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(folders, "safety", tmp_path)
    _edit(folder / "config.json", safety={"projector_kind": "mlp"})
    _error(folder, "projector_kind")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_folder_without_its_processor_is_an_error(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = _copy(folders, "stock", tmp_path)
    (folder / name).unlink()
    _error(folder, "processor")


@pytest.mark.parametrize("damage", ["renamed", "other rank", "malformed config"])
def test_adapter_that_does_not_fit_is_an_error(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = _copy(folders, "adapter", tmp_path)
    tensors = load_file(folder / ADAPTER_FILE)
    if damage == "renamed":
        save_file({n.replace("language_model", "llm"): t for n, t in tensors.items()}, folder / ADAPTER_FILE)
    elif damage == "other rank":
        save_file(
            {n: t[:2].clone() if "lora_A" in n else t for n, t in tensors.items()},
            folder / ADAPTER_FILE,
        )
    else:
        (folder / ADAPTER_CONFIG).write_text('{"peft_type": ', encoding="utf-8")
    _error(folder)


class _Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_foreign_pickle_is_never_executed(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    folder, target = _copy(folders, "stock", tmp_path), tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    bomb = {"lm_head.weight": _Bomb(target)}
    if form == "torch":
        torch.save(bomb, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        loading.load(folder)
    assert not target.exists(), "code inside a checkpoint was executed"


def test_honest_pickle_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(folders, "stock", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(_outputs(loading.load(folder))[0], _outputs(loading.load(folders["stock"]))[0])


def test_code_beside_a_checkpoint_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, target = _copy(folders, "stock", tmp_path), tmp_path / "executed"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(target)!r})\nclass Evil: pass\n", encoding="utf-8")
    auto = {"AutoConfig": "evil.Evil", "AutoProcessor": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        _edit(folder / name, auto_map=auto)
    loading.load(folder)
    assert not target.exists(), "remote code ran"


# Writing


def test_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_write.atomic_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyError), atomic_write.atomic_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("second")
        raise KeyError
    assert workshop.file_bytes(tmp_path) == {"x/a": b"first"}
    with atomic_write.atomic_folder(tmp_path / "x") as folder:
        (folder / "b").write_text("third")
    assert workshop.file_bytes(tmp_path) == {"x/b": b"third"}, "the old folder's files leaked into the new one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_unfinished_folder_of_a_killed_process_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".x.partial" / "stale").write_text("stale")
    with atomic_write.atomic_folder(tmp_path / "x") as folder:
        assert not (tmp_path / "x").exists(), "the folder is visible before it is complete"
        (folder / "a").write_text("a")
    assert workshop.file_bytes(tmp_path) == {"x/a": b"a"}


def test_empty_weights_are_never_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    """What ZeRO-3 leaves of a partitioned weight that nobody gathered (base facts §4.5)."""
    loaded = loading.load(folders["safety"])
    loaded.model.safety_lm_tokens.latent.data = torch.empty(0)
    with pytest.raises(CheckpointError, match="safety_lm_tokens.latent"):
        saving.save(loaded, loaded.model, tmp_path)
    assert not workshop.file_bytes(tmp_path)


# Merging


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_merged_logits_equal_unmerged_ones(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    difference = merge.merge(str(folders[kind]), tmp_path / "out")
    merged, unmerged = loading.load(tmp_path / "out"), loading.load(folders[kind])
    assert merged.kind == "full" and merged.base == (tmp_path / "out").resolve()
    assert difference < 1e-5
    for first, second in zip(_outputs(merged), _outputs(unmerged), strict=True):
        assert torch.allclose(first, second, atol=1e-4)
    files = set(workshop.file_bytes(tmp_path / "out"))
    assert "run.json" in files and ADAPTER_CONFIG not in files and SAFETY_FILE not in files


def test_merged_folder_stands_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    text = (folders["full"] / "config.json").read_text(encoding="utf-8")
    assert str(folders["stock"].parent) not in text, "the merged checkpoint still points at the base"
    assert loading.load(_copy(folders, "full", tmp_path)).kind == "full"


def test_merge_refuses_a_folder_in_use(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        merge.merge(str(folders["adapter"]), tmp_path / "out")
    assert workshop.file_bytes(tmp_path) == {"out/thesis.tex": b"mine"}
    (tmp_path / "empty").mkdir()
    merge.merge(str(folders["adapter"]), tmp_path / "empty")


def test_merge_over_the_tolerance_writes_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.tuners_utils import BaseTuner

    real = BaseTuner.merge_and_unload

    def wrong(self: Any, *rest: Any, **named: Any) -> Any:
        merged = real(self, *rest, **named)
        merged.lm_head.weight.data *= 1.01
        return merged

    monkeypatch.setattr(BaseTuner, "merge_and_unload", wrong)
    with pytest.raises(ValueError, match="nothing was written"):
        merge.merge(str(folders["adapter"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [], "a merge that failed its check left something behind"


def test_merge_checks_what_lies_on_disk(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge._save

    def damaged(model: Any, loaded: Any, folder: Path) -> None:
        real(model, loaded, folder)
        _weights_file(
            folder, lambda tensors: tensors.update({n: t * 1.01 for n, t in tensors.items() if "lm_head" in n})
        )

    monkeypatch.setattr(merge, "_save", damaged)
    with pytest.raises(ValueError, match="nothing was written"):
        merge.merge(str(folders["adapter"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
