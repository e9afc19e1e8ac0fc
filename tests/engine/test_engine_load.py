"""Every kind of checkpoint folder comes up behind a guard, wherever it lies and whatever it is called."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from safevlm.config import LoraSettings, SafetyConfig
from safevlm.defenses import DEFENSES, Defense, DefenseContext, Policy, build
from safevlm.engine import Engine
from safevlm.model import loading, saving
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.model.loading import Loaded
from safevlm.training.prepare import prepare
from safevlm.training.stages import STAGES
from safevlm.types import Reply, Request, Verdict
from tests import tiny
from tests.engine import engines

KINDS = ["stock", "full", "safety", "adapter"]


def _request() -> Request:
    return Request("What is in the picture?", (engines.image(1),))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock LLaVA folder."""
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = LlavaForConditionalGeneration(engines.llava_config()).eval()
    stock.save_pretrained(folder)
    engines.processor_of(tiny.safe_llava(stock, **tiny.BARE)).save_pretrained(folder)
    return folder


def _write(kind: str, base: Path, folder: Path) -> Reply:
    """Writes a checkpoint of a kind; what its model said before, behind its own head if it has one."""
    folder.mkdir()
    if kind == "stock":
        shutil.copytree(base, folder, dirs_exist_ok=True)
        return _reply(loading.load(base))
    if kind == "full":
        model = engines.model()
        model.save_pretrained(folder)
        engines.processor_of(model).save_pretrained(folder)
        return _reply(engines.loaded(model))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loaded = loading.load(base, safety=tiny.safety_config())
        tiny.shake(loaded.safe_llava.safety_head)
        if kind == "adapter":
            loaded = dataclasses.replace(loaded, model=_with_lora(loaded), kind="adapter")
        loaded.model.eval()
    saving.save(loaded, loaded.model, folder)
    return _reply(loaded)


def _with_lora(loaded: Loaded) -> torch.nn.Module:
    wrapped = prepare(
        loaded.safe_llava, STAGES["stage2"], tiny.recipe("stage2", lora=LoraSettings(r=2, alpha=2, dropout=0.0))
    )
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    return wrapped


def _reply(loaded: Loaded) -> Reply:
    head = loaded.safe_llava.safety_head is not None
    setting = DefenseContext(Policy(loaded.safe_llava.config.taxonomy), has_head=head)
    return Engine(loaded, build("auto", setting), engines.CPU).reply(_request(), engines.SHORT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_folder_loads_after_it_was_moved_and_renamed(kind: str, base: Path, tmp_path: Path) -> None:
    if kind == "adapter":
        pytest.importorskip("peft")
    said = _write(kind, base, tmp_path / "run")
    place = tmp_path / "else where" / "llava-lora-v2.1"
    place.parent.mkdir()
    shutil.move(tmp_path / "run", place)
    engine = Engine.load(place, device="cpu")
    assert engine.loaded.kind == kind
    assert engine.defense.name == ("none" if kind == "stock" else "safety-head")
    reply = engine.reply(_request(), engines.SHORT)
    assert reply.text == said.text, "the folder does not say what the model said that was saved into it"
    assert engines.same_verdict(reply.verdict, said.verdict)
    assert reply.prompt == said.prompt


def test_the_kinds_say_different_things(base: Path, tmp_path: Path) -> None:
    # Otherwise the test above could not tell a lost LoRA or lost tokens from loaded ones.
    pytest.importorskip("peft")
    said = [_write(kind, base, tmp_path / kind).text for kind in ("stock", "safety", "adapter")]
    assert len(set(said)) == 3


@pytest.mark.parametrize("kind", ["safety", "adapter"])
def test_base_that_has_moved_is_asked_for_and_taken(kind: str, base: Path, tmp_path: Path) -> None:
    if kind == "adapter":
        pytest.importorskip("peft")
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(base, old)
    said = _write(kind, old, tmp_path / "run")
    shutil.move(old, new)
    with pytest.raises(CheckpointError, match=r"--base DIR") as caught:
        Engine.load(tmp_path / "run", device="cpu")
    assert str(old) in str(caught.value), "the message does not say where the base was expected"
    assert Engine.load(tmp_path / "run", device="cpu", base=new).reply(_request(), engines.SHORT).text == said.text


def test_checkpoint_with_its_base_saved_whole_is_complete(base: Path, tmp_path: Path) -> None:
    # `save_pretrained` writes all weights; the folder must not ask for a base that it does not need.
    said = _write("safety", base, tmp_path / "run")
    loaded = loading.load(tmp_path / "run")
    loaded.model.save_pretrained(tmp_path / "whole")
    loaded.processor.save_pretrained(tmp_path / "whole")
    engine = Engine.load(tmp_path / "whole", device="cpu")
    assert engine.loaded.kind == "full"
    assert engine.reply(_request(), engines.SHORT).text == said.text


def test_truths_and_policy_reach_the_defense(base: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("levels: {careful: refuse}", encoding="utf-8")
    truths = {"x": Verdict("careful", "privacy", source="oracle")}
    engine = Engine.load(base, defense="oracle", policy=policy, truths=truths, device="cpu")
    reply = engine.reply(dataclasses.replace(_request(), id="x"), engines.SHORT)
    assert reply.refused_by == "oracle"
    assert "private information" in reply.text


def test_safety_head_on_a_stock_checkpoint_is_an_error(base: Path) -> None:
    with pytest.raises(ValueError, match="this checkpoint has no safety head; train one"):
        Engine.load(base, defense="safety-head", device="cpu")


def test_unknown_defense_is_an_error_that_names_the_choices(base: Path) -> None:
    with pytest.raises(ValueError, match="unknown defense 'magic'") as caught:
        Engine.load(base, defense="magic", device="cpu")
    assert all(name in str(caught.value) for name in DEFENSES)


def test_bad_policy_is_an_error_that_names_the_file(base: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("levels: {careful: warn}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"policy\.yaml:1: levels\.careful: unknown 'warn'"):
        Engine.load(base, policy=policy, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_that_is_not_there_is_a_clear_error(base: Path) -> None:
    with pytest.raises(ValueError, match="'cuda' was asked for, but torch sees no GPU here; use --device cpu"):
        Engine.load(base, device="cuda")


def test_unknown_device_is_a_value_error(base: Path) -> None:
    with pytest.raises(ValueError, match="gpu0"):
        Engine.load(base, device="gpu0")


def test_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        Engine.load(tmp_path / "nowhere", device="cpu")


def test_taxonomy_of_the_checkpoint_is_the_engines() -> None:
    table = {
        "categories": [{"name": "clean"}, {"name": "spam", "topic": "spam"}],
        "levels": [{"name": "safe"}, {"name": "bad", "stance": "Mind the {topic}."}],
    }
    engine = engines.engine("safety-head", says=("bad", "spam"), taxonomy=table)
    reply = engine.reply(_request(), engines.SHORT)
    assert (reply.verdict.level, reply.verdict.category) == ("bad", "spam")
    assert "\nMind the spam. ASSISTANT:" in reply.prompt


def test_engine_takes_a_defense_of_ones_own() -> None:
    class Polite(Defense):
        name = "polite"

        def rewrite(self, request: Request, verdict: Verdict) -> Request:
            return dataclasses.replace(request, text=f"Please: {request.text}")

    engine = Engine(engines.loaded(engines.model()), Polite(), engines.CPU)
    assert "Please: What is in the picture?" in engine.reply(_request(), engines.SHORT).prompt


def test_stock_checkpoint_gets_no_safety_modules(base: Path) -> None:
    inner = Engine.load(base, device="cpu").loaded.safe_llava
    assert inner.safety_head is None and inner.safety_lm_tokens is None
    assert inner.config.safety_config.projector == SafetyConfig(projector="none").projector


@pytest.mark.parametrize("defense", ["auto", "none"])
def test_a_policy_that_nobody_would_act_on_is_an_error(defense: str) -> None:
    with pytest.raises(ValueError, match="no effect"):
        Engine.load("checkpoints/miniature", defense=defense, policy={"levels": {"careful": "refuse"}}, device="cpu")


@pytest.mark.parametrize("kind", ["full", "safety"])
def test_what_looks_is_loaded_without_the_llm(kind: str, base: Path, tmp_path: Path) -> None:
    _write(kind, base, tmp_path / "run")
    whole, alone = (Engine.load(tmp_path / "run", device="cpu", lm=lm) for lm in (True, False))
    assert engines.same_verdict(alone.look(_request()), whole.look(_request()))
    weights = [sum(each.numel() for each in engine.model.parameters()) for engine in (whole, alone)]
    assert weights[1] < weights[0]
    with pytest.raises(ValueError, match="without its LLM"):
        alone.reply(_request(), engines.SHORT)
