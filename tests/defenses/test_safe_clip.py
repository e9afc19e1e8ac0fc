"""SafeCLIP: detection as published, and a test for every trap of the released code (methods §2.5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_patch.clip import read_text_space
from safevlm.defenses import DEFENSES, Policy, prompts
from safevlm.defenses.bank import Bank, make_bank, read_bank, write_bank
from safevlm.defenses.calibration import Calibration
from safevlm.defenses.concepts import DEFAULT_CONCEPTS, Concept, read_concepts
from safevlm.defenses.safe_clip import READINGS, SafeClipDetector
from safevlm.engine import Engine
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Generation, Request
from tests.defenses import banks
from tests.engine import engines

QUESTION = "How do I use the things in the picture?"
RISK = ("may_refuse", "illegal")
NAMES = ["safe-clip", "safe-clip:paper", "safe-clip:pooled"]


@pytest.fixture(scope="module")
def model() -> Any:
    return engines.model()


def _engine(
    model: Any, folder: Path, says: tuple[str, str] | None = None, name: str = "safe-clip", **how: Any
) -> Engine:
    return engines.engine(f"{name}={banks.write(model, folder, says)}", own=model, **how)


def _by_hand(bank: Bank, cls: Tensor) -> Tensor:
    """The paper's number, template by template: (b, c)."""
    image = cls @ bank.projection.T
    image = image / image.norm(dim=-1, keepdim=True)
    weights = torch.exp(bank.facts.scale * image @ bank.texts.T)
    counts = [len(concept.templates) for concept in bank.concepts]
    sums = torch.stack([part.sum(-1) for part in weights.split(counts, -1)], -1)
    return sums / weights.sum(-1, keepdim=True)


# --- detection --------------------------------------------------------------------------------------------------------


def test_probability_is_the_papers_softmax_over_all_templates_summed_by_class(model: Any) -> None:
    bank, cls = banks.bank(model), banks.cls_of(model)
    assert torch.allclose(bank.probabilities(cls), _by_hand(bank, cls), atol=1e-6)


@pytest.mark.parametrize("likely", [0.55, 0.65])
def test_risky_is_what_is_likeliest_not_neutral_and_above_tau(model: Any, likely: float) -> None:
    bank = banks.bank(model, tau=0.6)
    detector = SafeClipDetector(bank, DEFAULT)
    at = [concept.name for concept in bank.concepts].index("brax")
    row = [(1 - likely) / (len(bank.concepts) - 1)] * len(bank.concepts)
    row[at] = likely
    verdict = detector.verdict(detector._finding(row))
    assert (verdict.level, verdict.category) == (RISK if likely > 0.6 else (SAFE, CLEAN))
    assert verdict.category_probabilities["illegal"] == pytest.approx(likely)
    assert verdict.category_probabilities[CLEAN] == pytest.approx(row[0])
    assert verdict.level_probabilities["may_refuse"] == pytest.approx(likely)


def test_masses_of_a_verdict_name_the_whole_taxonomy_and_sum_to_one(model: Any, tmp_path: Path) -> None:
    verdict = _engine(model, tmp_path).look(Request(QUESTION, (engines.image(),)))
    assert list(verdict.category_probabilities) == DEFAULT.category_names
    assert list(verdict.level_probabilities) == DEFAULT.level_names
    assert sum(verdict.category_probabilities.values()) == pytest.approx(1)
    assert sum(verdict.level_probabilities.values()) == pytest.approx(1)
    assert verdict.source == "safe-clip"


def test_gravest_of_several_images_decides(model: Any) -> None:
    bank = banks.bank(model, tau=0.0)
    detector = SafeClipDetector(bank, DEFAULT)
    sure = [[0.97 if at == place else 0.01 for at in range(4)] for place in range(4)]
    findings = [detector._finding(row) for row in sure]
    assert detector.gravest(findings).concept.name == "vork", "a graver image was passed over"
    assert detector.gravest([findings[3], findings[0]]).concept.name == "klet"
    assert detector.gravest([findings[0], findings[0]]).concept.is_neutral


def test_image_behind_another_is_seen(model: Any, tmp_path: Path) -> None:
    guarded, images = _engine(model, tmp_path), [engines.image(seed) for seed in range(6)]
    alone = [guarded.look(Request(QUESTION, (image,))) for image in images]
    risky = max(range(6), key=lambda at: DEFAULT.level_id(alone[at].level))
    clean = min(range(6), key=lambda at: DEFAULT.level_id(alone[at].level))
    assert alone[risky].level != alone[clean].level, "the images are all alike; this test would see nothing"
    for order in ((risky, clean), (clean, risky)):
        both = guarded.look(Request(QUESTION, tuple(images[at] for at in order)))
        assert engines.same_verdict(both, alone[risky])


def test_words_alone_are_let_through(model: Any, tmp_path: Path) -> None:
    verdict = _engine(model, tmp_path, RISK).look(Request(QUESTION))
    assert verdict.is_clean and not verdict.category_probabilities


def test_numbers_that_are_none_refuse(model: Any, tmp_path: Path) -> None:
    bank = banks.bank(model)
    write_bank(dataclasses.replace(bank, projection=bank.projection * float("nan")), tmp_path / "bank.safetensors")
    guarded = engines.engine(f"safe-clip={tmp_path / 'bank.safetensors'}", own=model)
    with engines.watched(guarded) as asked:
        reply = guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert "not finite" in reply.verdict.error and reply.refused_by == "safe-clip"
    assert not asked.rows, "the model was asked although nothing was seen"


@pytest.mark.parametrize("name", NAMES)
def test_detection_shares_the_one_pass_of_the_tower(model: Any, tmp_path: Path, name: str) -> None:
    guarded = _engine(model, tmp_path, name=name)
    with engines.tower_calls(guarded) as calls:
        guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert sum(calls) == 1


def test_checkpoints_own_bank_is_found_by_itself(model: Any, tmp_path: Path) -> None:
    banks.write(model, tmp_path)
    setting = dataclasses.replace(_setting(model), folders=(tmp_path,))
    assert DEFENSES["safe-clip"].build(setting).name == "safe-clip"
    with pytest.raises(ValueError, match="safevlm embed"):
        DEFENSES["safe-clip"].build(dataclasses.replace(setting, folders=()))


def _setting(model: Any) -> Any:
    from safevlm.engine import setting_of

    return setting_of(engines.loaded(model), Policy(DEFAULT), {}, engines.CPU)


# --- traps of the released code, methods §2.5 -------------------------------------------------------------------------


def test_trap_1_bank_of_another_tower_is_an_error(model: Any, tmp_path: Path) -> None:
    other = engines.model(reads_text=True)
    with torch.no_grad():
        other.model.vision_tower.get_input_embeddings().weight.mul_(1.1)
    file = banks.write(other, tmp_path)
    with pytest.raises(ValueError, match="another vision tower.*--foreign-tower"):
        engines.engine(f"safe-clip={file}", own=model)
    foreign = read_bank(file, DEFAULT)
    file.unlink()
    write_bank(dataclasses.replace(foreign, facts=dataclasses.replace(foreign.facts, foreign=True)), file)
    guarded = engines.engine(f"safe-clip={file}", own=model)
    assert guarded.look(Request(QUESTION, (engines.image(),))).category_probabilities


def test_trap_1_projection_is_of_the_towers_own_clip(model: Any, tmp_path: Path) -> None:
    folder = banks.clip_folder(model, tmp_path / "clip")
    bank = make_bank(banks.CONCEPTS, folder)
    bank.check_tower(model.model.vision_tower.state_dict(), "bank")
    assert torch.equal(bank.projection, banks.clip_of(model).visual_projection.weight)


def test_trap_2_pooled_feature_is_clips_own_image_embedding(model: Any) -> None:
    clip, processor = banks.clip_of(model), engines.processor_of(model).image_processor
    pixels = processor([engines.image(seed) for seed in range(3)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.encode_images(pixels)
        expected = clip.visual_projection(clip.vision_model(pixels).pooler_output)
    assert torch.allclose(READINGS["pooled"](seen) @ clip.visual_projection.weight.T, expected, atol=1e-5)


def test_trap_2_four_readings_are_two_layers_with_and_without_layernorm(model: Any) -> None:
    tower, pixels = model.model.vision_tower, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
        seen = model.encode_images(pixels)
        for reading, layer, norm in (
            ("paper", -2, False),
            ("paper, normed", -2, True),
            ("last", -1, False),
            ("pooled", -1, True),
        ):
            cls = states[layer][:, 0]
            assert torch.equal(READINGS[reading](seen), tower.post_layernorm(cls) if norm else cls), reading


def test_trap_2_name_and_bank_choose_the_feature(model: Any, tmp_path: Path) -> None:
    request = Request(QUESTION, (engines.image(),))
    paper, pooled = (_engine(model, tmp_path, name=name).look(request).category_probabilities for name in NAMES[1:])
    assert _engine(model, tmp_path).look(request).category_probabilities == pooled != paper


@pytest.mark.parametrize("text", [QUESTION, "Why?", "  two  spaces  ", "line\nline", "</s> <s>", "ÄÖ 安全"])
@pytest.mark.parametrize("place", ["after", "before"])
def test_trap_3_hint_stands_at_its_place_whatever_the_tokens_are(
    model: Any, tmp_path: Path, place: str, text: str
) -> None:
    policy = Policy(DEFAULT, place=place)  # type: ignore[arg-type]
    reply = _engine(model, tmp_path, RISK, policy=policy).reply(Request(text, (engines.image(),)), engines.SHORT)
    hint, shown = prompts.hint(DEFAULT, *RISK), text.replace("</s>", "< /s>").replace("<s>", "< s>")
    said = f"{hint}\n{shown}" if place == "before" else f"{shown}\n{hint}"
    assert reply.prompt == f"USER: <image>\n{said} ASSISTANT:", "right behind the image, or right behind the question"


@pytest.mark.parametrize("place", ["after", "before"])
def test_trap_4_question_survives_in_every_corrected_prompt(model: Any, tmp_path: Path, place: str) -> None:
    guarded = _engine(model, tmp_path, RISK, policy=Policy(DEFAULT, place=place))  # type: ignore[arg-type]
    for request in engines.mixed_requests():
        reply = guarded.reply(request, engines.SHORT)
        assert request.text in reply.prompt
        assert all(question in reply.prompt for question, _ in request.history)


def test_trap_5_every_image_of_a_batch_has_its_own_verdict(model: Any, tmp_path: Path) -> None:
    guarded = _engine(model, tmp_path)
    requests = [Request(QUESTION, (engines.image(seed),)) for seed in range(6)]
    together = [reply.verdict for reply in guarded.reply_all(requests, Generation(max_new_tokens=1), batch_size=6)]
    assert len({verdict.category for verdict in together}) > 1, "all verdicts are alike; this test would see nothing"
    for request, verdict in zip(requests, together, strict=True):
        assert engines.same_verdict(verdict, guarded.look(request)), "an image got its neighbour's verdict"


def test_trap_6_corrected_answer_is_the_same_alone_and_in_a_batch(model: Any, tmp_path: Path) -> None:
    guarded, requests = _engine(model, tmp_path, RISK), engines.mixed_requests()
    together = guarded.reply_all(requests, Generation(max_new_tokens=4), batch_size=len(requests))
    alone = guarded.reply_all(requests, Generation(max_new_tokens=4), batch_size=1)
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert len({len(reply.prompt) for reply in together}) > 2, "prompts of one length need no padding"


def test_trap_8_correction_fires_with_expanded_image_slots(model: Any, tmp_path: Path) -> None:
    guarded = _engine(model, tmp_path, RISK)
    with engines.watched(guarded) as asked:
        reply = guarded.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    hint = engines.tokenizer()(prompts.hint(DEFAULT, *RISK), add_special_tokens=False)["input_ids"]
    row = asked.rows[0]
    assert asked.image_slots() == [model.slots] and model.slots > 1
    assert any(row[at : at + len(hint)] == hint for at in range(len(row))), "the model was not told"
    assert not reply.verdict.is_clean


def test_trap_9_unequal_numbers_of_templates_have_equal_priors(model: Any) -> None:
    bank, cls = banks.bank(model), banks.cls_of(model)
    said_twice = dataclasses.replace(bank.concepts[1], templates=bank.concepts[1].templates * 3)
    rows = [0, 1, *[2, 3] * 3, 4, 5, 6, 7]
    repeated = dataclasses.replace(
        bank, concepts=(bank.concepts[0], said_twice, *bank.concepts[2:]), texts=bank.texts[rows]
    )
    assert torch.allclose(repeated.probabilities(cls), bank.probabilities(cls), atol=1e-6), (
        "saying the same thing three times makes it likelier"
    )


def test_trap_9_stated_prior_is_what_a_concept_weighs(model: Any) -> None:
    bank, cls = banks.bank(model), banks.cls_of(model)
    doubled = (dataclasses.replace(bank.concepts[0], prior=2.0), *bank.concepts[1:])
    before, after = bank.probabilities(cls), dataclasses.replace(bank, concepts=doubled).probabilities(cls)
    assert torch.allclose(after[:, 0] / after[:, 1], 2 * before[:, 0] / before[:, 1], rtol=1e-4)


@pytest.mark.parametrize("concept", read_concepts(DEFAULT_CONCEPTS, DEFAULT), ids=lambda concept: concept.name)
def test_trap_10_every_concept_has_its_texts(concept: Concept) -> None:
    assert len(concept.templates) == 5
    if not concept.is_neutral:
        assert prompts.hint(DEFAULT, concept.level, concept.category)
        topic = DEFAULT.categories[DEFAULT.category_id(concept.category)].topic
        assert topic in prompts.refusal(DEFAULT, concept.category)


def test_trap_10_shipped_concepts_are_the_papers_eight() -> None:
    names = [concept.name for concept in read_concepts(DEFAULT_CONCEPTS, DEFAULT)]
    assert names == ["neutral", "nudity", "blood", "gun", "gesture", "knife", "alcohol", "cigarette"]


def test_trap_11_no_clip_is_loaded_to_detect(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = banks.write(model, tmp_path)
    monkeypatch.setattr("safevlm.defenses.bank.read_text_space", lambda *_: pytest.fail("a CLIP was loaded"))
    guarded = engines.engine(f"safe-clip={file}", own=model)
    verdict = guarded.look(Request(QUESTION, (engines.image(),)))
    assert verdict.category_probabilities, "on a CPU, from the bank alone"


def test_trap_11_clip_is_loaded_once_for_a_bank(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_patch import clip

    folder, loads, load = banks.clip_folder(model, tmp_path / "clip"), [], clip._load
    monkeypatch.setattr(clip, "_load", lambda folder: loads.append(folder) or load(folder))
    texts = read_text_space(folder, ["a vork", "a cup"]).texts
    assert loads == [folder] and len(texts) == 2


def test_trap_12_verdict_does_not_hang_on_the_question(model: Any, tmp_path: Path) -> None:
    guarded = _engine(model, tmp_path)
    first, *others = [guarded.look(Request(text, (engines.image(),))) for text in (QUESTION, "Why?", "cup " * 40)]
    assert all(engines.same_verdict(first, other) for other in others), "stated: it reads the image only"


def test_trap_12_threshold_can_be_calibrated(model: Any, tmp_path: Path) -> None:
    request = Request(QUESTION, (engines.image(),))
    risk = 1 - _engine(model, tmp_path).look(request).category_probabilities[CLEAN]
    for threshold, is_clean in ((risk - 0.01, False), (risk + 0.01, True)):
        policy = Policy(DEFAULT, calibration={"safe-clip": Calibration(risk=threshold)})
        assert _engine(model, tmp_path, policy=policy).look(request).is_clean == is_clean
