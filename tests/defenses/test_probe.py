"""A probe at work: what it reads, what it looks at, and which files are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safevlm.defenses import Policy, Stack, build, probe_file
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.probe import ProbeDetector
from safevlm.engine import Engine, setting_of
from safevlm.engine.encoder import Encoder
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request
from tests.defenses import probes
from tests.engine import engines

QUESTION = "How do I use the things in the picture?"


def _engine(folder: Path, reads_words: bool = False, **options: Any) -> Engine:
    stored = dataclasses.replace(probes.stored(engines.model(), **options), reads_words=reads_words)
    probe_file.write(folder / probe_file.FILE, stored)
    return engines.engine(f"probe={folder}")


def _detector(engine: Engine) -> ProbeDetector:
    assert isinstance(engine.defense, Mixer) and isinstance(engine.defense.detector, ProbeDetector)
    return engine.defense.detector


@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2)])
def test_the_verdict_hangs_on_question_and_image(layers: tuple[int, ...], tmp_path: Path) -> None:
    engine = _engine(tmp_path, layers=layers)
    asked = [Request(text, (engines.image(seed),)) for text in (QUESTION, "What is it?") for seed in (1, 2)]
    verdicts = [engine.look(request) for request in asked]
    assert not any(verdict.error for verdict in verdicts)
    seen = [tuple(round(value, 6) for value in verdict.category_probabilities.values()) for verdict in verdicts]
    assert len(set(seen)) == len(asked), "question or image makes no difference"


@pytest.mark.parametrize("reads_words", [False, True])
def test_a_request_in_words_is_looked_at_only_where_it_was_trained_for(reads_words: bool, tmp_path: Path) -> None:
    verdict = _engine(tmp_path, reads_words).look(Request("How do I use the cup?"))
    assert not verdict.error
    assert verdict.looked == reads_words


def test_a_stack_acts_on_what_the_probe_alone_sees(tmp_path: Path) -> None:
    model = engines.model(says=(SAFE, CLEAN))
    probes.write(model, tmp_path, ("must_refuse", "illegal"))
    engine = engines.engine(
        f"safety-head+probe={tmp_path}", own=model, policy=Policy(DEFAULT, {"must_refuse": "refuse"})
    )
    assert isinstance(engine.defense, Stack)
    reply = engine.reply(Request(QUESTION, (engines.image(1),)), engines.SHORT)
    assert (reply.verdict.level, reply.verdict.source, bool(reply.refused_by)) == ("must_refuse", "probe", True)


def test_an_attack_gets_a_gradient_and_the_margin_has_the_sign_of_the_verdict(tmp_path: Path) -> None:
    """What an attack on the tower goes by: margin → states → tower → pixels."""
    engine = _engine(tmp_path, layers=(1, 2))
    requests = [Request(QUESTION, (engines.image(seed),)) for seed in range(6)]
    detector, encoder = _detector(engine), Encoder(engine.loaded, engine.device)
    features = encoder.features(requests)
    batch = features[0]._vision_batch
    assert batch is not None
    pixels: Any = batch.pixel_values
    pixels.requires_grad_()
    batch.read_prompts = lambda layers, tokens: encoder.states(requests, features, layers, tokens)
    margins = detector.margin(batch)
    verdicts = [engine.look(request) for request in requests]
    assert [bool(margin > 0) for margin in margins] == [not verdict.is_clean for verdict in verdicts]
    gradient = torch.autograd.grad(margins.sum(), pixels)[0]
    assert all(image.abs().sum() > 0 for image in gradient)


# --- files ------------------------------------------------------------------------------------------------------------


def test_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    stored = dataclasses.replace(
        probes.stored(engines.model(), layers=(2, 1)), reads_words=True, about={"base": "a", "loss": 0.25}
    )
    probe_file.write(tmp_path / "x.safetensors", stored)
    found = probe_file.read(tmp_path / "x.safetensors", DEFAULT)
    states = torch.randn(3, 2, found.tokens, found.width)
    assert torch.equal(found.probe(states).category, stored.probe(states).category)
    names = ("layers", "tokens", "reads_words", "levels", "categories", "about")
    assert [getattr(found, name) for name in names] == [getattr(stored, name) for name in names]


def _change(file: Path, **tensors: torch.Tensor | None) -> None:
    metadata = {"format": probe_file.FORMAT}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    kept = {name: value for name, value in {**load_file(file), **tensors}.items() if value is not None}
    save_file(kept, file, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"level.bias": None},
        {"level.bias": torch.zeros(9)},
        {"level.bias": torch.full((4,), float("nan"))},
        {"hidden.weight": torch.zeros(8, 3)},
    ],
    ids=["missing", "shape", "nan", "width"],
)
def test_broken_weights_are_an_error_when_the_engine_is_built(change: Any, tmp_path: Path) -> None:
    probes.write(engines.model(), tmp_path)
    _change(tmp_path / probe_file.FILE, **change)
    with pytest.raises(ValueError, match=str(tmp_path / probe_file.FILE)):
        engines.engine(f"probe={tmp_path}")


def test_a_file_of_another_kind_is_no_probe() -> None:
    with pytest.raises(ValueError, match="no probe"):
        engines.engine(f"probe={engines.engine().loaded.path / 'defenses' / 'security_tensor_textual.safetensors'}")


def test_a_layer_that_the_model_has_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers \\[3\\].* has 2 "):
        _engine(tmp_path, layers=(3,))


def test_other_levels_are_an_error(tmp_path: Path) -> None:
    stored = probes.stored(engines.model())
    probe_file.write(tmp_path / probe_file.FILE, dataclasses.replace(stored, levels=(*stored.levels[:-1], "x")))
    with pytest.raises(ValueError, match="learned the levels"):
        engines.engine(f"probe={tmp_path}")


@pytest.mark.parametrize("part", ["LLM", "vision tower", "LM tokens"])
def test_a_probe_of_another_model_is_an_error_that_names_the_part(part: str, tmp_path: Path) -> None:
    """The LLM, what it is given to read, and the learned tokens in front of every image: its states hang on all."""
    engine = engines.engine()
    parts = {name: torch.ones(2, 16) for name in ("LLM", "vision tower", "projector", "embeddings", "lm_head")}
    loaded = dataclasses.replace(engine.loaded, base_fingerprints=parts)
    setting = setting_of(loaded, Policy(DEFAULT), {}, engines.CPU)
    assert setting.facts is not None
    own = {**parts, **setting.facts.lm_tokens}
    stored = probes.stored(engines.model())
    for given in (own, {**own, part: own[part] + 1}):
        probe_file.write(tmp_path / probe_file.FILE, dataclasses.replace(stored, base=given))
        place = dataclasses.replace(setting, folders=(tmp_path,))
        if given is own:
            assert build("probe", place).name == "probe"
        else:
            with pytest.raises(ValueError, match=f"this model's {part} differ"):
                build("probe", place)


def test_an_engine_without_its_llm_refuses_it_at_the_start_and_names_the_flag() -> None:
    loaded = dataclasses.replace(engines.engine().loaded, has_lm=False)
    for name in ("probe", "safety-head+probe"):
        with pytest.raises(ValueError, match="without its LLM.*--defense"):
            build(name, setting_of(loaded, Policy(DEFAULT), {}, engines.CPU))
