"""The base at tiny sizes: what it is taught and on what, steps that are not made twice, a stock LLaVA at the end."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from llava_patch import fresh
from safevlm.defenses import prompts
from safevlm.engine import Engine
from safevlm.miniature.words import build_tokenizer
from safevlm.pictograms import dataset, judge, words
from safevlm.pictograms.base import build, clip_step, scenes, speech
from safevlm.pictograms.base import llm as llm_step
from safevlm.pictograms.base.assemble import assemble
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.base.sight import NOTHING, ThingPlaces
from safevlm.pictograms.base.sizes import READ_LAYER, TEXT, TOWER
from safevlm.pictograms.base.talk import ADAPTER, WEIGHTS
from safevlm.pictograms.parts import Parts
from safevlm.pictograms.splits import content, sample, split_of
from safevlm.pictograms.styles import STYLES, of_part
from safevlm.pictograms.world import BY_NAME, RISKY, THINGS, taxonomy
from safevlm.types import Generation, Request
from safevlm.worlds.descent import Descent
from safevlm.worlds.exact_judge import STEPS
from safevlm.worlds.splits import split_of_content
from tests.pictograms.drawn_parts import write_parts

TINY = PictogramBaseConfig(
    scenes=16, sight_steps=1, caption_steps=1, clip_batch=8, align_steps=1, align_batch=2, pictures=12,
    fit_steps=1, projector_steps=1, see_steps=1, see_batch=3, cases=0,
)  # fmt: skip
CPU = torch.device("cpu")
UNSEEN = [thing for thing in RISKY if not thing.is_seen]
SHAPES = (words.DESCRIBE, words.USE_IMAGE, words.USE_TEXT, words.ABOUT_TEXT)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _llm(tmp_path_factory.mktemp("llm"), width=16)


def _llm(folder: Path, width: int, missing: int = 0) -> Path:
    """A random Llama of two layers, its head tied to its embeddings as the real one's is."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) - missing,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )  # fmt: skip
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _targets(dialogues: list[speech.Dialogue]) -> list[tuple[str, str]]:
    """Question and answer of each."""
    return [(asked["content"][-1]["text"], told["content"][0]["text"]) for asked, told in dialogues]


def taught_in_words(count: int = 3_000) -> list[tuple[str, str]]:
    rng = random.Random(1)
    return _targets([speech.in_words(rng) for _ in range(count)])


def test_scenes_of_the_base_hold_nothing_back_from_validation_and_test(parts: Parts) -> None:
    rng = random.Random(2)
    for make in (scenes.shown_to_tower(of_part("train")), scenes.lone, scenes.named, scenes.used):
        for scene in scenes.draw(rng, 60, make, parts).scenes:
            assert not scene.style or STYLES[scene.style].part == "train"
            if scene.things[0].is_seen:
                assert split_of(scene) == "train"
            elif not scene.word:
                assert split_of_content(content(scene)) == "train"


def test_rows_of_new_tokens_are_the_same_each_time(tmp_path: Path) -> None:
    place = _llm(tmp_path, width=16, missing=2)
    tokenizer = llm_step.load_tokenizer(place)
    once, again = (llm_step.load_llm(place, tokenizer).get_input_embeddings().weight for _ in range(2))
    assert len(once) == len(tokenizer) and torch.equal(once, again)


def test_every_thing_is_shown_with_its_name_the_unseen_classes_too() -> None:
    rng = random.Random(3)
    shown = {scene.things[0] for scene in (scenes.named(rng) for _ in range(9_000))}
    assert shown == set(THINGS)


def test_no_answer_about_the_use_of_a_risky_thing_in_an_image_is_taught() -> None:
    rng, exact = random.Random(4), judge.exact()
    for _ in range(1_500):
        scene = scenes.named(rng)
        if scene.things[0].is_risky:
            with pytest.raises(ValueError, match="risky"):
                speech.about_harmless(rng, scene)
        [(_, answer)] = _targets([speech.naming(rng, scene)])
        assert exact.judge(answer, level="safe", task="describe", things=[one.name for one in scene.things]).value == 1
        used = scenes.used(rng)
        [(_, answer)] = _targets([speech.about_harmless(rng, used)])
        assert not used.things[0].is_risky and not exact.has_risky_steps(answer)


def test_words_refuse_all_that_is_risky_and_no_note_is_needed() -> None:
    taught = taught_in_words()
    exact = judge.exact()
    for question, answer in taught:
        assert not exact.has_risky_steps(answer), question
    kinds = {sentence.kind for _, answer in taught for sentence in exact.parse(answer) or ()}
    assert kinds == {STEPS, "refused", "careful", "about"}
    for thing in (BY_NAME["dagger"], *UNSEEN):
        said = {a for q, a in taught if "\n" not in q and f" {words.with_article(thing)}" in q}
        assert said <= {prompts.refusal(taxonomy(), thing.category), words.about(thing)}, thing.name
        assert prompts.refusal(taxonomy(), thing.category) in said, "whoever aligned the LLM knew the word"


def test_notes_and_shapes_are_none_that_the_mixer_or_a_later_question_uses() -> None:
    held_back = {shape for shapes in SHAPES for part in ("validation", "test") for shape in shapes[part]}
    own = {*speech.DESCRIBE, *speech.USE_IMAGE, *speech.USE_TEXT, *speech.ABOUT_TEXT, *speech.KIND_IMAGE}
    assert not own & held_back
    hints = {
        prompts.hint(taxonomy(), level, category) for level in taxonomy().level_names[1:] for category in words.topics()
    }
    sentences = {one.strip() for hint in hints for one in hint.split(".") if one.strip()}
    questions = " ".join(question for question, _ in taught_in_words())
    assert "\n" in questions and not any(sentence in questions for sentence in sentences)


def test_truth_knows_where_the_things_of_a_scene_are(parts: Parts) -> None:
    """The parts are coloured squares: the middle of a thing has its colour."""
    scene = sample(random.Random(5), "benign", "train")
    truth = ThingPlaces([scene])
    assert (truth.thing[0] != NOTHING).sum() == len(scene.things)
    for placed, (x, y) in zip(scene.placed, truth.middle[0].tolist(), strict=False):
        column, row = (placed.corner % 2) * 2 - 1, (placed.corner // 2) * 2 - 1
        assert len(scene.things) == 1 or (x * column > 0 and y * row > 0)
        assert abs(x) + placed.size <= 1.001 and abs(y) + placed.size <= 1.001


def test_a_tower_that_ends_early_gives_what_llava_reads() -> None:
    clip = fresh.clip_of(TOWER, {**TEXT, "vocab_size": 9}, TOWER["projection_dim"]).eval()
    pixels = torch.rand(1, 3, TOWER["image_size"], TOWER["image_size"])
    whole = fresh.tower_patches(clip, pixels, READ_LAYER)
    with fresh.tower_read_at(clip, READ_LAYER):
        assert torch.equal(fresh.tower_patches(clip, pixels, -1), whole)
    assert torch.equal(fresh.tower_patches(clip, pixels, READ_LAYER), whole)


@pytest.mark.slow
def test_a_tower_that_was_stopped_goes_on_as_if_it_had_not_been(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    config = replace(TINY, sight_steps=3)
    images = llm_step.image_processor_of(build_tokenizer())
    pictures = scenes.draw(random.Random(7), 8, scenes.shown_to_tower(of_part("train")), parts)

    def learned(stopped: Path, config: PictogramBaseConfig = config, start_digest: str = "") -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        clip = fresh.clip_of(TOWER, {**TEXT, "vocab_size": 9}, TOWER["projection_dim"])
        clip_step.learn_to_see(clip, pictures, images, config, stopped, start_digest)
        return clip.vision_model.state_dict()

    whole = learned(tmp_path / "a")
    step, count = Descent.step, 0

    def step_or_stop(self: Descent, loss: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise Stop
        step(self, loss)

    monkeypatch.setattr(clip_step, "KEPT_EVERY", 1)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(Descent, "step", step_or_stop)
        learned(tmp_path / "b")
    with pytest.raises(ValueError, match=r"b was made with sight_steps 3, not 4"):
        learned(tmp_path / "b", replace(config, sight_steps=4))
    with pytest.raises(ValueError, match=r"b was made with digest of start None, not 'another'"):
        learned(tmp_path / "b", start_digest="another")
    resumed = learned(tmp_path / "b")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert not list(tmp_path.iterdir()), "a finished step leaves nothing to go on from"


@pytest.mark.slow
def test_a_build_ends_in_a_stock_llava_and_is_not_made_twice(
    parts: Parts, llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    small = dataset.PictogramDataConfig(risky=1, clean=1, per_group=1, validation_per_group=2)
    dataset.write(data, parts, small)
    config = replace(TINY, cases=2)
    build.build(out, parts, llm, config, CPU)
    build.measured(out, parts, data / "validation", "validation", config, CPU)
    record = json.loads((out / "base" / "run.json").read_text())
    assert record["settings"]["see_steps"] == 1 and {"clip", "aligned", "parts"} <= set(record["made_by"]["digests"])
    table = json.loads((out / "measured" / "run.json").read_text())["measured"]
    assert table["groups"]["harmful_seen"]["asr"]["n"] == 2 and len(table["named"]) == 4
    assert set(table["steps"]) == set(build.STEPS)

    llava = LlavaForConditionalGeneration.from_pretrained(out / "base", dtype=torch.float32)
    assert llava.lm_head.weight is llava.get_input_embeddings().weight
    clip = CLIPModel.from_pretrained(out / "clip", dtype=torch.float32)
    pixels = torch.rand(1, 3, TOWER["image_size"], TOWER["image_size"])
    theirs = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[READ_LAYER][:, 1:]
    assert torch.allclose(fresh.tower_patches(clip, pixels, READ_LAYER), theirs, atol=1e-5), "the tower is the CLIP's"
    assemble(out, llm, tmp_path / "assembled")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "assembled", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in llava.state_dict().items()), "out of its parts"
    with pytest.raises(ValueError, match=r"another model.*--llm"):
        assemble(out, _llm(tmp_path / "wider", width=32), tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"clip is missing.*--made"):
        assemble(data, llm, tmp_path / "nothing")
    engine = Engine.load(out / "base", defense="none", device="cpu")
    asked = Request("How do I use this?", images=(data / "eval" / "benign-0000.png",))
    assert not engine.reply(asked, Generation(max_new_tokens=2)).error

    build.build(tmp_path / "on", parts, llm, config, CPU, "clip", start=out)
    went_on = json.loads((tmp_path / "on" / "clip" / "run.json").read_text())["made_by"]["digests"]
    assert "start" in went_on and "start" not in record["made_by"]["digests"], "whose weights a tower started from"
    on = CLIPModel.from_pretrained(tmp_path / "on" / "clip", dtype=torch.float32).state_dict()
    drift = [
        (on[name] - weight).abs().max() for name, weight in clip.state_dict().items() if weight.is_floating_point()
    ]
    assert 0 < max(drift) < 0.2, "it learned on, from there"
    build.build(tmp_path / "on", parts, llm, config, CPU, "aligned", start=out)
    first, then = (load_file(made / "aligned" / ADAPTER / WEIGHTS) for made in (out, tmp_path / "on"))
    changed = [name for name in first if not torch.equal(first[name], then[name])]
    assert changed and all((first[name] - then[name]).abs().max() < 0.01 for name in first), "the LoRA learned on"
    with pytest.raises(FileNotFoundError, match=r"clip is missing.*--start"):
        build.build(tmp_path / "none", parts, llm, config, CPU, "clip", start=out / "clip")
    with pytest.raises(ValueError, match="--start"):
        build.build(tmp_path / "none", parts, llm, config, CPU, "base", start=out)

    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    capsys.readouterr()
    build.build(out, parts, llm, config, CPU)
    assert capsys.readouterr().out.count("made before") == 3
    assert stamps == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"base was made with see_steps 1, not 2"):
        build.build(out, parts, llm, replace(config, see_steps=2), CPU)
