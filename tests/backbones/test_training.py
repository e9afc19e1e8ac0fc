"""Both stages, merging and the two forms of export on every family: what trains, what is kept, what comes back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safevlm.config import LoraSettings, LossWeights
from safevlm.data import chat, chat_messages
from safevlm.data.collate import IGNORED, Collator
from safevlm.data.records import read_records
from safevlm.engine import load
from safevlm.model import loading
from safevlm.model.safety_modules import is_safety_name
from safevlm.taxonomy import DEFAULT
from safevlm.training.merge import fold
from safevlm.training.run import train
from safevlm.types import Generation, Request
from tests.backbones import families, small_runs
from tests.backbones.templates import SHAPES

each_family = families.each()
SHORT = Generation(max_new_tokens=5)
ONLY_IMPORTS = """
import json, pathlib, sys, safevlm
from transformers import AutoModelForImageTextToText as Auto
folders = pathlib.Path(sys.argv[1]).iterdir()
print(json.dumps({folder.name: type(Auto.from_pretrained(folder)).__name__ for folder in folders}))
"""


@pytest.mark.slow
@families.few()
def test_stages_train_their_own_weights_and_merged_and_exported_models_answer_alike(
    family: str, tmp_path: Path
) -> None:
    stock = families.saved(family, tmp_path / "stock")
    small_runs.data(tmp_path)
    head = train(small_runs.recipe(tmp_path, "stage1", stock, "head", lm_tokens=0, loss=LossWeights(lm=0)))
    first = train(small_runs.recipe(tmp_path, "stage1", stock, "one"))
    second = train(small_runs.recipe(tmp_path, "stage2", first, "two", lora=LoraSettings(r=2, alpha=4, dropout=0)))

    before, after = loading.load(stock).model.state_dict(), loading.load(first).model.state_dict()
    changed = {name for name, weight in after.items() if name not in before or not torch.equal(weight, before[name])}
    assert changed == {name for name in after if is_safety_name(name)}
    kept, again = load_file(first / "safety.safetensors"), load_file(second / "safety.safetensors")
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
    learned = load_file(second / "adapter_model.safetensors")
    assert learned and all("lora_" in name for name in learned)
    assert any(bool(weight.abs().sum()) for name, weight in learned.items() if "lora_B" in name)

    result = fold(str(second), tmp_path / "merged")
    assert result.difference < 1e-4
    fold(str(head), tmp_path / "guarded", stock=True)
    assert "safety" not in json.loads((tmp_path / "guarded" / "config.json").read_text(encoding="utf-8"))
    asked = Request("What is it?", images=(str(tmp_path / "1.png"),))
    for one, other in ((second, tmp_path / "merged"), (head, tmp_path / "guarded")):
        replies = [load(place, device="cpu").reply(asked, SHORT) for place in (one, other)]
        assert replies[0].text == replies[1].text and replies[0].verdict.level == replies[1].verdict.level
        assert not replies[0].verdict.error


@each_family
def test_what_is_learnt_is_the_answers_with_their_ends_and_nothing_else(family: str, tmp_path: Path) -> None:
    _, processor = families.stock(family)
    batch = Collator(processor)(list(read_records([str(small_runs.data(tmp_path))], DEFAULT)))
    said = [processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    end = SHAPES[family].end
    assert [text.strip() for text in said[:1]] == [f"Thing 0.{end}"]
    assert said[6].replace(" ", "") == f"Hi.{end}Yes.{end}" and said[7].strip() == f"Alike.{end}"
    assert batch["images_per_row"].tolist() == [1] * 6 + [0, 2] and len(batch["pixel_values"]) == 8


@families.each(["paligemma"])
def test_paligemma_learns_what_its_own_processor_makes(family: str, tmp_path: Path) -> None:
    """Question and answer as `suffix` has them: the same ids, and the same tokens that only answers are read with."""
    model, processor = families.stock(family)
    image = families.image(0)
    messages = (chat_messages.user("What is it?", 1), chat_messages.assistant("A cup."))
    ours = chat.encode_dialogues(processor, [messages], [[image]])
    theirs = processor(text=["<image>What is it?"], images=[[image]], suffix=["A cup."], return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["assistant_masks"], (theirs["labels"] != IGNORED).long())
    labels = theirs["labels"]
    stock = families.saved(family, tmp_path / "stock")
    (stock / "chat_template.jinja").unlink()  # as it is published
    read = loading.load(stock)
    loaded = read.model.train()
    assert chat.dialogue_text(read.processor, messages) == "<image><bos>What is it?\nA cup.<eos>"
    with torch.no_grad():
        given = {"pixel_values": ours["pixel_values"], "images_per_row": ours["images_per_row"], "labels": labels}
        own = loaded(input_ids=ours["input_ids"], attention_mask=ours["attention_mask"], **given).logits
        torch.testing.assert_close(own, model.train()(**theirs).logits, rtol=1e-5, atol=1e-5)


def test_a_template_that_writes_a_beginning_otherwise_is_refused(tmp_path: Path) -> None:
    _, processor = families.stock("qwen3_vl")
    processor.chat_template = processor.chat_template.replace(
        "<|im_end|>", "{{ '<|im_end|>' if loop.last else '<|im_start|>' }}"
    )
    records = list(read_records([str(small_runs.data(tmp_path))], DEFAULT))
    with pytest.raises(ValueError, match="template"):
        Collator(processor)(records)


def test_a_folder_for_kept_features_is_refused_where_none_are_kept(tmp_path: Path) -> None:
    stock = families.saved("gemma3", tmp_path / "stock")
    small_runs.data(tmp_path)
    recipe = small_runs.recipe(tmp_path, "stage1", stock, "head", lm_tokens=0, loss=LossWeights(lm=0))
    named = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, feature_cache=str(tmp_path / "kept")))
    with pytest.raises(ValueError, match=r"data\.feature_cache"):
        train(named)
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
@pytest.mark.parametrize("names", [families.TELLING, pytest.param(families.ANSWERING, marks=pytest.mark.thorough)])
def test_transformers_reads_merged_folders_in_a_process_that_only_imports_the_package(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    expected = {}
    for family in set(names) & set(families.INSTALLED):
        stock = families.saved(family, tmp_path / "stock" / family)
        model = loading.load(stock, safety=replace(families.SAFETY, lm_tokens=0)).model
        model.save_pretrained(tmp_path / "full" / family)
        expected[family] = type(model).__name__
    words = [sys.executable, "-c", ONLY_IMPORTS, str(tmp_path / "full")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
