"""The LLM in 4 or 8 bits: exactly its linear layers are packed, and nothing of that reaches a disk."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from safevlm.config import LoraSettings, Quantization, SafetyConfig
from safevlm.data.collate import IGNORED
from safevlm.model import base_print, loading, quantization
from safevlm.model.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_FILE, SAFETY_FILE
from safevlm.model.layout import LLAVA
from safevlm.model.quantization import PACKED, QuantizationError
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import merge
from safevlm.training.prepare import prepare
from safevlm.training.run import train
from safevlm.training.stages import STAGES
from tests import tiny
from tests.training import workshop

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs the extra `quant`")

KINDS = tuple(PACKED)
SAFETY = SafetyConfig(**tiny.SAFETY)
WIDTH = 64
"""Of the LLM: bitsandbytes' blocks are so long, and on some CPUs it takes nothing narrower."""
LINEARS = workshop.LAYERS * workshop.PROJECTIONS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a stock LLaVA; `data/mixed.jsonl`: 24 records; `stage1`: a stage 1 on the base."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workshop, "WIDTH", WIDTH)
        workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data"))
    train(workshop.recipe(home / "base", home / "data" / "mixed.jsonl", home / "stage1"))
    return home


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, home: Path) -> tuple[str, Path, workshop.WatchedTrainer]:
    """A stage 2 on a quantised LLM: kind, folder, trainer. Read only."""
    kind, out = request.param, home / request.param
    with pytest.MonkeyPatch.context() as patched:
        trainers = workshop.watch(patched)
        train(_recipe(home, out, kind))
    return kind, out, trainers[0]


def _recipe(home: Path, out: Path, kind: str, stage: str = "stage2", **sections: dict[str, Any]) -> Any:
    """Six updates, checkpoint-3 in the middle."""
    start = home / ("stage1" if stage == "stage2" else "base")
    fields: dict[str, dict[str, Any]] = {
        "model": {"quantize": kind},
        "optim": {"epochs": 2, "lr": 2e-2},
        "run": {"save_steps": 3},
    }
    merged = {name: {**fields.get(name, {}), **sections.get(name, {})} for name in {*fields, *sections}}
    return workshop.recipe(start, home / "data" / "mixed.jsonl", out, stage, **merged)


def _classes(model: nn.Module, kind: str) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == PACKED[kind]}


@torch.no_grad()
def _logits(loaded: loading.Loaded) -> Tensor:
    inputs = tiny.batch([1], loaded.safe_llava.slots)
    inputs["pixel_values"] = tiny.pixels(1, size=workshop.IMAGE_SIZE)
    return loaded.model(**inputs).logits


# Loading


def test_every_kind_of_the_recipe_has_a_class() -> None:
    assert {"none", *PACKED} == set(get_args(Quantization))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exactly_the_llms_linear_layers_are_packed(home: Path, kind: Any, dtype: torch.dtype) -> None:
    loaded = loading.load(home / "base", safety=SAFETY, quantize=kind, dtype=dtype)
    packed = _classes(loaded.model, kind)
    assert len(packed) == LINEARS and all(name.startswith("model.language_model.layers.") for name in packed)
    for name, module in loaded.model.named_modules():
        if isinstance(module, nn.Linear) and name not in packed:
            expected = torch.float32 if is_safety_name(name) else dtype
            assert module.weight.dtype == expected, f"{name} must not change its type"
    assert type(loaded.model.lm_head) is nn.Linear


@pytest.mark.parametrize(("forgotten", "named"), [("lm_head", "lm_head"), ("model.vision_tower", "vision_tower")])
def test_a_skip_list_that_forgets_something_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str, named: str
) -> None:
    whole = quantization.kept(LLAVA)
    monkeypatch.setattr(quantization, "kept", lambda layout: [name for name in whole if name != forgotten])
    with pytest.raises(QuantizationError, match=f"packed that must not be: .*{named}"):
        loading.load(home / "base", quantize="nf4")


def test_a_skip_list_that_names_too_much_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantization.kept(LLAVA)
    monkeypatch.setattr(quantization, "kept", lambda layout: [*whole, "model.language_model.layers.1"])
    with pytest.raises(QuantizationError, match=f"{workshop.PROJECTIONS} layers not packed: .*layers.1"):
        loading.load(home / "base", quantize="int8")


def test_packed_as_another_kind_is_an_error(home: Path) -> None:
    model = loading.load(home / "base", quantize="int8").model
    with pytest.raises(QuantizationError, match="not as nf4"):
        quantization.check(model, "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_llm_pays_in_accuracy(home: Path, kind: Any) -> None:
    """A quantised model is near, but not equal; what the head reads is equal."""
    whole, packed = loading.load(home / "stage1"), loading.load(home / "stage1", quantize=kind)
    first, second = _logits(whole), _logits(packed)
    difference = ((first - second).abs().max() / first.abs().max()).item()
    assert 0 < difference < 0.3, f"logits differ by {difference:.2f} of the largest"
    patches = [
        loaded.safe_llava.encode_images(tiny.pixels(1, size=workshop.IMAGE_SIZE)).patches for loaded in (whole, packed)
    ]
    assert torch.equal(*patches)
    verdicts = [loaded.safe_llava.judge(patches[0], [1]) for loaded in (whole, packed)]
    assert torch.equal(verdicts[0].level, verdicts[1].level)


def test_without_the_llm_there_is_nothing_to_pack(home: Path) -> None:
    loaded = loading.load(home / "base", safety=SAFETY, quantize="nf4", lm=False)
    assert not _classes(loaded.model, "nf4")


def test_zero3_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(QuantizationError, match=r"ZeRO-3.*--run\.deepspeed zero2"):
        loading.load(home / "base", quantize="nf4")


def test_missing_bitsandbytes_names_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(QuantizationError, match=r"\.\[quant\]"):
        loading.load(home / "base", quantize="nf4")


# Training


def test_qlora_changes_exactly_the_lora_and_learns(run: tuple[str, Path, workshop.WatchedTrainer]) -> None:
    kind, out, trainer = run
    lora = {name for name in trainer.before if ".lora_" in name}
    assert len(lora) == 2 * LINEARS
    assert trainer.changed() == lora, sorted(trainer.changed() ^ lora)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    assert len(_classes(trainer.model, kind)) >= LINEARS
    losses = [line["loss_lm"] for line in workshop.history(out / "final")]
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"


def test_checkpoint_is_small_and_names_its_whole_base(
    home: Path, run: tuple[str, Path, workshop.WatchedTrainer]
) -> None:
    kind, out, _ = run
    files = workshop.file_bytes(out / "final")
    config = json.loads(files["config.json"])
    assert config["base_checkpoint"] == str((home / "base").resolve())
    assert not _mentions(config, "quant"), "the checkpoint would quantise the base wherever it is loaded"
    assert "quant" not in files[ADAPTER_CONFIG].decode()
    assert f"quantize: {kind}" in files["recipe.yaml"].decode(), "the recipe says how it was trained"
    stored = {name for name in files if name.endswith(".safetensors")}
    assert stored == {SAFETY_FILE, ADAPTER_FILE, base_print.FILE}


def _mentions(table: Any, word: str) -> bool:
    if isinstance(table, dict):
        return any(word in key or _mentions(value, word) for key, value in table.items())
    return False


def test_quantised_run_resumes(home: Path, tmp_path: Path, run: tuple[str, Path, workshop.WatchedTrainer]) -> None:
    kind, out, _ = run
    again = tmp_path / "again"
    shutil.copytree(out / "checkpoint-3", again / "checkpoint-3")
    train(_recipe(home, again, kind))
    first, second = (
        load_file(out / "final" / ADAPTER_FILE),
        load_file(again / "final" / ADAPTER_FILE),
    )
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-6), f"{name}: resuming is not the same as not stopping"


def test_adapter_loads_on_the_whole_and_on_the_quantised_base(run: tuple[str, Path, workshop.WatchedTrainer]) -> None:
    kind, out, trainer = run
    whole, packed = loading.load(out), loading.load(out, quantize=kind)
    assert not _classes(whole.model, kind) and len(_classes(packed.model, kind)) >= LINEARS
    trainer.model.eval()
    inputs = tiny.batch([1], packed.safe_llava.slots)
    inputs["pixel_values"] = tiny.pixels(1, size=workshop.IMAGE_SIZE)
    with torch.no_grad():
        trained = trainer.model(**inputs).logits
        assert torch.allclose(packed.model(**inputs).logits, trained, atol=1e-5), "not the model that was trained"
        near = ((whole.model(**inputs).logits - trained).abs().max() / trained.abs().max()).item()
    assert 0 < near < 0.3, f"on the whole base logits are {near:.2f} away"
    words = packed.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert words.shape[1] == inputs["input_ids"].shape[1] + 3


def test_quantised_run_merges_on_the_whole_base(tmp_path: Path, run: tuple[str, Path, workshop.WatchedTrainer]) -> None:
    kind, out, _ = run
    merge.merge(str(out), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert not _mentions(config, "quant")
    merged = loading.load(tmp_path / "merged")
    assert not _classes(merged.model, kind)
    assert torch.allclose(_logits(merged), _logits(loading.load(out)), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_stage1_trains_its_modules_through_a_quantised_llm(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trainers = workshop.watch(monkeypatch)
    final = train(_recipe(home, tmp_path / "out", kind, "stage1", optim={"epochs": 1, "lr": 3e-3}))
    changed = trainers[0].changed()
    assert changed == {name for name in trainers[0].before if is_safety_name(name)}
    assert "safety_lm_tokens.latent" in changed, "the gradient must come through the packed layers"
    assert loading.load(final).kind == "safety"


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(home: Path, kind: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        loaded = loading.load(home / "stage1", quantize=kind)
        torch.manual_seed(0)
        model = prepare(
            loaded.safe_llava, STAGES["stage2"], tiny.recipe("stage2", lora=LoraSettings(r=4, alpha=8, dropout=0.0))
        )
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        inputs = tiny.batch([1, 0], loaded.safe_llava.slots)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < tiny.FIRST_WORD, IGNORED)
        inputs["pixel_values"] = tiny.pixels(1, size=workshop.IMAGE_SIZE)
        model(**inputs, labels=labels).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) and len(gradients[0]) == 2 * LINEARS
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
