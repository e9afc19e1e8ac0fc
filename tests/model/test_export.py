"""A stock LLaVA with our guard beside it: stock software sees nothing of us, and with us nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from safevlm.config import LoraSettings, SafetyConfig
from safevlm.data.images import open_image
from safevlm.engine import Engine
from safevlm.model import checkpoint_folder, export, loading, saving
from safevlm.model.checkpoint_folder import SAFETY_FILE, CheckpointError
from safevlm.model.safety_modules import is_safety_name
from safevlm.training import merge
from safevlm.training.prepare import prepare
from safevlm.training.run import train
from safevlm.training.stages import STAGES
from safevlm.types import Request
from tests import tiny
from tests.training import workshop

LM_TOKENS = tiny.SAFETY["lm_tokens"]
POLICY = {"levels": {"careful": "allow"}, "thresholds": {"privacy": 0.25}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`adapter`: a checkpoint with a LoRA and a policy; `full`, `guarded`: merged from it. Read only: damage copies."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "stock")
    torch.manual_seed(0)
    loaded = loading.load(home / "stock", safety=SafetyConfig(**tiny.SAFETY))
    tiny.shake(loaded.model.safety_head)
    tiny.shake(loaded.model.safety_lm_tokens)
    loaded.model.config.policy = POLICY
    ours = {name: tensor for name, tensor in loaded.model.state_dict().items() if is_safety_name(name)}
    loaded = loading.Loaded(loaded.model, loaded.processor, loaded.kind, loaded.path, loaded.base, ours)
    wrapped = prepare(
        loaded.model, STAGES["stage2"], tiny.recipe("stage2", lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    )
    for name, weight in wrapped.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    (home / "adapter").mkdir()
    saving.save(loaded, wrapped, home / "adapter", {"run.json": "{}"})
    merge.fold(str(home / "adapter"), home / "full")
    merge.fold(str(home / "adapter"), home / "guarded", stock=True)
    return home


@pytest.mark.parametrize("kind", ["adapter", "full", "guarded"])
def test_a_saved_folder_has_a_card_of_its_own_kind(home: Path, kind: str) -> None:
    text = (home / kind / "README.md").read_text(encoding="utf-8")
    assert f"Kind of folder: `{kind}`" in text and '"privacy": 0.25' in text, "the card leaves out the policy"
    assert str(home) not in text, "a card tells places on somebody's machine"
    assert ("without its guard" in text) == (kind == "guarded") == (home / kind / "safety/README.md").is_file()


def _image(home: Path) -> Path:
    return home / "data" / workshop.rows(home / "data", 3)[0]["image"]


def _copy(home: Path, to: Path) -> Path:
    return Path(shutil.copytree(home / "guarded", to / "else where" / "renamed"))


def _inputs(slots: int) -> dict[str, Tensor]:
    return {**tiny.batch([1, 0], slots), "pixel_values": tiny.pixels(1, size=workshop.IMAGE_SIZE)}


@torch.no_grad()
def _outputs(loaded: loading.Loaded) -> list[Tensor]:
    """Logits of the LLM and of the head."""
    inputs = _inputs(loaded.safe_llava.slots)
    output = loaded.model(**inputs, safety_word_mask=tiny.words_of(inputs["input_ids"]))
    return [output.logits, output.level_logits, output.category_logits]


def _weights_file(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _error(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as error:
        loading.load(folder)
    message = str(error.value)
    assert all(part in message for part in (str(folder), *parts)) and "\n" not in message, message


# Without us


def test_stock_class_finds_every_key_and_no_other(home: Path) -> None:
    _, info = LlavaForConditionalGeneration.from_pretrained(home / "guarded", output_loading_info=True)
    assert not {what: found for what, found in info.items() if found}
    assert not [name for name in load_file(home / "guarded" / "model.safetensors") if "safety" in name]


def test_stock_files_name_nothing_of_ours(home: Path) -> None:
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"):
        text = (home / "guarded" / name).read_text(encoding="utf-8")
        assert "safe" not in text.replace("safetensors", "").lower(), f"{name} would puzzle a stock server: {text}"
    config = json.loads((home / "guarded" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llava" and config["architectures"] == ["LlavaForConditionalGeneration"]
    assert (home / "guarded" / "chat_template.jinja").is_file()


def test_stock_processor_makes_stock_slots(home: Path) -> None:
    processor = AutoProcessor.from_pretrained(home / "guarded")
    model = LlavaForConditionalGeneration.from_pretrained(home / "guarded").eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(images=[open_image(_image(home))], text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == workshop.PATCHES
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


def test_stock_logits_are_ours_without_lm_tokens(home: Path) -> None:
    inputs = _inputs(workshop.PATCHES)
    full = loading.load(home / "full")
    with torch.no_grad():
        theirs = LlavaForConditionalGeneration.from_pretrained(home / "guarded").eval()(**inputs).logits
        full.model.model.multi_modal_projector._forward_hooks.clear()  # takes the LM tokens off
        full.safe_llava.slots = workshop.PATCHES
        assert torch.allclose(full.model(**inputs).logits, theirs, atol=1e-6)
        bare = loading.load(home / "guarded", guard=False)
        assert bare.kind == "stock" and torch.equal(bare.model(**inputs).logits, theirs)
        base = loading.load(home / "stock").model(**inputs).logits
    assert not torch.allclose(theirs, base, atol=1e-3), "the LoRA is not in the stock weights"


# With us


def test_guard_brings_everything_back(home: Path) -> None:
    guarded, full = loading.load(home / "guarded"), loading.load(home / "full")
    assert guarded.kind == "guarded" and guarded.safe_llava.config.safety_config.lm_tokens == LM_TOKENS
    pairs = list(zip(_outputs(guarded), _outputs(full), strict=True))
    assert all(torch.equal(*pair) for pair in pairs), "guarded and full checkpoint must be one model"
    unmerged = _outputs(loading.load(home / "adapter"))
    assert all(torch.allclose(first, second, atol=1e-4) for (first, _), second in zip(pairs, unmerged, strict=True))


def test_taxonomy_and_policy_come_along(home: Path) -> None:
    guarded, full = loading.load(home / "guarded").safe_llava.config, loading.load(home / "full").safe_llava.config
    assert guarded.taxonomy == full.taxonomy and guarded.policy == full.policy == POLICY


def test_engine_puts_the_guard_in_front(home: Path) -> None:
    request = Request("What is in the picture?", images=(str(_image(home)),))
    guarded = Engine.load(home / "guarded", device="cpu")
    assert guarded.defense.name == "safety-head"
    seen, truth = guarded.look(request), Engine.load(home / "full", device="cpu").look(request)
    assert (seen.level, seen.category, seen.error) == (truth.level, truth.category, "")
    assert seen.level_probabilities == pytest.approx(truth.level_probabilities, abs=1e-6)
    assert seen.category_probabilities == pytest.approx(truth.category_probabilities, abs=1e-6)


def test_folder_may_move(home: Path, tmp_path: Path) -> None:
    moved = _copy(home, tmp_path)
    assert all(
        torch.equal(*pair)
        for pair in zip(_outputs(loading.load(moved)), _outputs(loading.load(home / "guarded")), strict=True)
    )
    assert str(home) not in (moved / export.SIDECAR / "config.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_guarded_is_a_start_for_merging_and_training(home: Path, tmp_path: Path) -> None:
    merge.fold(str(home / "guarded"), tmp_path / "full")
    assert loading.load(tmp_path / "full").kind == "full"
    data = workshop.save_rows(home / "data" / "some.jsonl", workshop.rows(home / "data", 6))
    final = train(workshop.recipe(home / "guarded", data, tmp_path / "run"))
    again = loading.load(final)
    assert again.kind == "safety" and again.base == (home / "guarded").resolve()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adapter", "full", "guarded"])
def test_guard_keeps_float32_whatever_the_base_has(home: Path, kind: str, dtype: torch.dtype) -> None:
    """Rounded on the way, the verdicts of a GPU would not be those of training."""
    stored = load_file(home / "guarded" / export.SIDECAR / SAFETY_FILE)
    arrived = loading.load(home / kind, dtype=dtype).safe_llava.state_dict()
    assert all(torch.equal(tensor, arrived[name]) for name, tensor in stored.items())


# A guard in front of the wrong model


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "embed_tokens"])
def test_guard_of_another_base_is_an_error(home: Path, tmp_path: Path, part: str) -> None:
    """The same shapes, another tower: no other check would notice."""
    folder = _copy(home, tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if part in name)
        tensors[name].view(-1)[0] += 1

    _weights_file(folder, change)
    _error(folder, "belongs to another model", "--stock")
    assert loading.load(folder, guard=False).kind == "stock"


def test_layers_of_the_llm_may_be_tuned_further(home: Path, tmp_path: Path) -> None:
    folder = _copy(home, tmp_path)
    _weights_file(folder, lambda tensors: next(t for n, t in tensors.items() if "layers.1.mlp" in n).mul_(2))
    assert loading.load(folder).kind == "guarded"


def test_shards_have_the_print_of_the_whole(home: Path, tmp_path: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(home / "guarded")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert export.fingerprint(tmp_path / "shards") == export.fingerprint(home / "guarded")


@pytest.mark.parametrize("name", [export.CONFIG_FILE, export.SAFETY_FILE])
def test_half_a_guard_is_an_error_and_never_an_unguarded_model(home: Path, tmp_path: Path, name: str) -> None:
    folder = _copy(home, tmp_path)
    (folder / export.SIDECAR / name).unlink()
    _error(folder, name, "incomplete")


@pytest.mark.parametrize(
    ("content", "part"),
    [("{", "not JSON"), ("{}", "lacks 'safety'"), ("[]", "not a table"), ('{"safety": {"x": 1}}', "safety.x: unknown")],
)
def test_broken_guard_is_an_error(home: Path, tmp_path: Path, content: str, part: str) -> None:
    folder = _copy(home, tmp_path)
    (folder / export.SIDECAR / "config.json").write_text(content, encoding="utf-8")
    _error(folder, part)


def test_guard_weights_that_do_not_fit_are_an_error(home: Path, tmp_path: Path) -> None:
    folder = _copy(home, tmp_path)
    file = folder / export.SIDECAR / SAFETY_FILE
    tensors = load_file(file)
    del tensors["safety_lm_tokens.latent"]
    save_file(tensors, file)
    _error(folder, "do not fit")


def test_the_guards_own_folder_is_no_checkpoint(home: Path) -> None:
    with pytest.raises(CheckpointError, match=export.SIDECAR_TYPE):
        loading.load(home / "guarded" / export.SIDECAR)


def test_some_folder_called_safety_makes_no_guard(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "stock", tmp_path / "stock")
    (tmp_path / "stock" / export.SIDECAR).mkdir()
    (tmp_path / "stock" / export.SIDECAR / "notes.md").write_text("hard hats")
    assert checkpoint_folder.kind_of(tmp_path / "stock") == "stock"


def test_model_without_a_guard_cannot_be_split(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no safety modules"):
        merge.fold(str(home / "stock"), tmp_path / "out", stock=True)
    assert list(tmp_path.iterdir()) == []
