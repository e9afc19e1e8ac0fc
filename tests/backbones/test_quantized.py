"""QLoRA on other families: their LLM in 4 or 8 bits, packed where the family has it, and nothing of that on a disk."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safevlm.backbones.table import BACKBONES
from safevlm.config import LoraSettings, Quantization
from safevlm.engine import load
from safevlm.model import loading
from safevlm.model.quantization import PACKED
from safevlm.model.safety_modules import is_safety_name
from safevlm.training.merge import fold
from safevlm.training.run import train
from safevlm.types import Generation, Request
from tests.backbones import families, small_runs
from tests.backbones.features import FEATURES
from tests.engine import engines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs the extra `quant`"),
]

RUNS = (("qwen2_5_vl", "int8"), ("gemma3", "nf4"), pytest.param("llama4", "nf4", marks=pytest.mark.thorough))
"""Both stages to the merged model: flattened patches, squares, and (thorough) a router that is a linear layer of its
own class."""
WIDTH = 64
"""Of the LLM: bitsandbytes' blocks are so long, and on some CPUs it takes nothing narrower."""


@pytest.mark.parametrize("kind", PACKED)
@families.few(FEATURES["QLoRA"])
def test_stage_2_on_a_packed_llm_trains_the_lora_alone_and_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: Quantization
) -> None:
    linears = _stock(tmp_path, monkeypatch, family)
    loaded = loading.load(tmp_path / "stock", safety=families.SAFETY)
    for part in (loaded.model, loaded.processor):
        part.save_pretrained(tmp_path / "guarded")
    small_runs.data(tmp_path)
    final = train(
        small_runs.recipe(
            tmp_path,
            "stage2",
            tmp_path / "guarded",
            "two",
            model={"quantize": kind},
            lora=LoraSettings(r=2, alpha=4, dropout=0),
        )
    )
    learned = load_file(final / "adapter_model.safetensors")
    assert len(learned) == 2 * linears and all("lora_" in name for name in learned)
    moved = [bool(weight.abs().sum()) for name, weight in learned.items() if "lora_B" in name]
    assert sum(moved) > linears / 2
    before = {name: weight for name, weight in loaded.model.state_dict().items() if is_safety_name(name)}
    again = loading.load(final, quantize=kind)
    assert len(_packed(again, kind)) >= linears
    assert all(torch.equal(again.safe_llava.state_dict()[name], weight) for name, weight in before.items())
    reply = load(final, device="cpu").reply(
        Request("What is it?", images=(str(tmp_path / "1.png"),)), Generation(max_new_tokens=2)
    )
    assert not reply.verdict.error


def _stock(place: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> int:
    """Saves a stock model that is wide enough to `place/stock`; its layers that a LoRA is put on."""
    monkeypatch.setattr(families, "WIDTH", WIDTH)
    stock, processor = families.build(family)
    for part in (stock, processor):
        part.save_pretrained(place / "stock")
    return sum(bool(re.fullmatch(BACKBONES[family].lora_targets, name)) for name, _ in stock.named_modules())


def _packed(loaded: loading.Loaded, kind: str) -> set[str]:
    return {name for name, module in loaded.model.named_modules() if type(module).__name__ == PACKED[kind]}


@pytest.mark.parametrize(("family", "kind"), RUNS)
def test_a_lora_is_learned_on_a_packed_llm_and_merges_on_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    linears = _stock(tmp_path, monkeypatch, family)
    small_runs.data(tmp_path)
    packing = {"quantize": kind}
    first = train(small_runs.recipe(tmp_path, "stage1", tmp_path / "stock", "one", model=packing))
    lora = LoraSettings(r=2, alpha=4, dropout=0)
    optim = {"epochs": 4, "lr": 2e-2}
    second = train(
        small_runs.recipe(tmp_path, "stage2", first, "two", model=packing, lora=lora, optim=optim, run={"log_steps": 1})
    )

    kept, again = load_file(first / "safety.safetensors"), load_file(second / "safety.safetensors")
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
    learned = load_file(second / "adapter_model.safetensors")
    assert len(learned) == 2 * linears
    assert any(bool(weight.abs().sum()) for name, weight in learned.items() if "lora_B" in name)
    log = json.loads((second / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [line["loss_lm"] for line in log if "loss_lm" in line]
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"

    whole, packed = loading.load(second), loading.load(second, quantize=kind)  # type: ignore[arg-type]  # of the table
    assert not _packed(whole, kind) and len(_packed(packed, kind)) >= linears
    assert "quant" not in json.dumps(json.loads((second / "config.json").read_text(encoding="utf-8")))
    assert fold(str(second), tmp_path / "merged").difference < 1e-4
    asked = Request("What is it?", images=(str(tmp_path / "1.png"),))
    replies = [
        load(place, device="cpu").reply(asked, Generation(max_new_tokens=5)) for place in (second, tmp_path / "merged")
    ]
    assert replies[0].text == replies[1].text
    assert engines.same_verdict(replies[0].verdict, replies[1].verdict)
