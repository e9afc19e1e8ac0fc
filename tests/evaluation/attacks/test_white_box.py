"""What the attacker goes by is what the engine does: verdicts, answers, and images that may be sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from safevlm.data.images import open_image
from safevlm.defenses import Defense
from safevlm.engine import Engine
from safevlm.evaluation.attacks.descent import Box, apgd, descend, pgd, rank
from safevlm.evaluation.attacks.job import Effort
from safevlm.evaluation.attacks.margins import margins_of
from safevlm.evaluation.attacks.row import AttackRow
from safevlm.evaluation.attacks.suffix import SuffixTarget, suffixes
from safevlm.evaluation.attacks.white_box import WhiteBox, frozen
from safevlm.evaluation.attacks.white_box_rows import ROWS
from safevlm.types import Generation, Verdict
from safevlm.usage import UsageError
from tests.engine import engines
from tests.evaluation.attacks.attacked import QUICK, job, samples

LOOKING = ("safety-head", "safe-clip:pooled", "safety-head+safe-clip:pooled", "fusion:max", "safety-head+probe")
SHORT = Generation(max_new_tokens=5)


def engine(defense: str) -> Engine:
    return engines.engine(defense, own=engines.model())


def opened(defense: str, folder: Path, answers: bool = False, count: int = 6) -> tuple[Engine, WhiteBox]:
    made = engine(defense)
    found = samples(folder, count)
    said = [""] * count
    if answers:
        bare = made.behind("none")
        said = [reply.text for reply in bare.reply_all([each.request for each in found], SHORT)]
    return made, WhiteBox(frozen(made), found, said)


@pytest.mark.parametrize("defense", LOOKING)
def test_margin_is_below_zero_exactly_where_the_engine_calls_an_image_clean(defense: str, tmp_path: Path) -> None:
    made, box = opened(defense, tmp_path, count=24)
    unseen = box.losses(box.originals.float() / 255).is_unseen
    assert unseen.tolist() == [made.look(sample.request).is_clean for sample in box.samples]


EXACT = {
    "safety-head:either": "",
    "safety-head:views": "{views: [trimmed, 'tile:1', left], risk: 0.0, least: 0, least_part: 0}",
    "safe-clip:views": "{views: [trimmed, 'tile:1', left], risk: 0.0, votes: 2, least: 0, least_part: 0}",
    "safety-head:consistent": "{move: 1.0}",
}
"""Detectors that look again, with options by which a margin of 0 is the engine's own border."""


@pytest.mark.parametrize("name", EXACT)
def test_margin_of_a_detector_that_looks_again_is_the_engines_border_and_has_a_gradient(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "options.yaml").write_text(EXACT[name], encoding="utf-8")
    made, box = opened(f"{name}={tmp_path / 'options.yaml'}" if EXACT[name] else name, tmp_path, count=16)
    images = (box.originals.float() / 255).requires_grad_()
    margins = box.losses(images).margins[:, 0]
    sure = margins.abs() > 0.02  # views are rounded to 8 bits on their way to the engine
    clean = torch.tensor([made.look(sample.request).is_clean for sample in box.samples])
    assert sure.sum() > 10 and torch.equal((margins < 0)[sure], clean[sure])
    assert (torch.autograd.grad(margins.sum(), images)[0].abs().sum((1, 2, 3)) > 0).all()


def test_margin_of_a_smoothed_detector_is_taken_over_fresh_noise_and_has_a_gradient(tmp_path: Path) -> None:
    _, box = opened("safety-head:smoothed", tmp_path, count=3)
    images = (box.originals.float() / 255).requires_grad_()
    first, second = (box.losses(images).margins[:, 0] for _ in range(2))
    assert first.shape == (3,) and not torch.equal(first, second)
    assert torch.autograd.grad(first.sum(), images)[0].abs().sum() > 0


def test_margins_of_the_head_are_on_both_sides_of_zero_for_some_images(tmp_path: Path) -> None:
    _, box = opened("safety-head", tmp_path, count=24)
    assert 0 < box.losses(box.originals.float() / 255).is_unseen.sum() < 24


TRANSFORMING = ("none", "safety-head", "security-tensor:textual", "security-tensor:visual", "static-prompt")


@pytest.mark.parametrize("defense", TRANSFORMING)
def test_loss_of_the_answer_is_that_of_the_prompt_that_the_engine_reads(defense: str, tmp_path: Path) -> None:
    made = engines.engine(defense, own=engines.model(says=("safe", "clean")), says=("safe", "clean"))
    found, answer = samples(tmp_path, 3), "There is a cup."
    box = WhiteBox(frozen(made), found, [answer] * 3)
    images = box.originals.float() / 255
    losses = box.losses(images)
    asked = made.encoded([each.request for each in found])
    assert asked is not None
    said = torch.tensor(made.processor.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])
    ids = torch.cat([asked.input_ids, said.expand(3, -1)], 1)
    mask = torch.ones_like(ids)
    mask[:, : asked.input_ids.shape[1]] = asked.attention_mask
    further = asked.lm_arguments(ids, asked.image_tokens)
    logits = made.model(input_ids=ids, attention_mask=mask, **further).logits[:, -len(said) - 1 : -1]
    expected = F.cross_entropy(logits.transpose(1, 2), said.expand(3, -1), reduction="none").mean(-1)
    torch.testing.assert_close(losses.answer, expected, rtol=1e-4, atol=1e-4)
    assert losses.is_answered.tolist() == (logits.argmax(-1) == said).all(-1).tolist()


def test_detector_that_nobody_sees_through_is_refused() -> None:
    class Opaque(Defense):
        name = "opaque"

        def detect(self, request: Any, features: Any) -> Verdict:
            return Verdict()

    with pytest.raises(UsageError, match="opaque"):
        margins_of(Opaque())


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "suffix"], ids=lambda row: row.name)
def test_attacked_file_stays_within_its_budget(row: AttackRow, tmp_path: Path) -> None:
    made, box = opened("safety-head", tmp_path / "seen", answers=True)
    strength = 25.0 if row.name == "patch" else 8.0
    own = job(tmp_path, made, strength, answers={"scene/0": "There is a cup."})
    for sample, old in zip(row.make(own), own.samples, strict=True):
        image = box.map.native(open_image(sample.request.images[0])).int()
        change = (image - box.map.native(open_image(old.request.images[0])).int()).abs()
        assert 0 < change.max() <= (255 if row.name == "patch" else 8)
        if row.name == "patch":
            assert not change[:, 16:].any() and not change[:, :, 16:].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "defense"), [(pgd, "safety-head"), (apgd, "safety-head"), (pgd, "probe")], ids=["pgd", "apgd", "probe"]
)
def test_attack_finds_images_that_no_detector_sees(step: Any, defense: str, tmp_path: Path) -> None:
    _, box = opened(defense, tmp_path, count=12)
    best = descend(box, Box(box.originals.float(), 255), step, Effort(steps=30, starts=2), 0)
    assert box.losses(best.images / 255).is_unseen.all()


def test_more_effort_never_helps_the_defender(tmp_path: Path) -> None:
    _, box = opened("safety-head", tmp_path, answers=True)
    limits = Box(box.originals.float(), 8)
    few, more = (descend(box, limits, pgd, replace(QUICK, starts=starts), 0) for starts in (1, 3))
    assert (more.ranks <= few.ranks).all()
    torch.testing.assert_close(rank(box.losses(more.images / 255)), more.ranks, rtol=1e-4, atol=1e-4)


def test_unseen_and_answered_ranks_before_unseen_before_seen(tmp_path: Path) -> None:
    from safevlm.evaluation.attacks.white_box import Losses

    ranks = rank(
        Losses(
            torch.tensor([[-1.0], [-1.0], [0.1], [5.0]]),
            torch.tensor([0.2, 3.0, 0.0, 0.0]),
            torch.tensor([True, False, True, True]),
        )
    )
    assert ranks.tolist() == sorted(ranks.tolist())


@pytest.mark.parametrize("defense", ["static-prompt", "security-tensor:textual"])
def test_suffix_stands_behind_the_question_and_makes_the_answer_likelier(defense: str, tmp_path: Path) -> None:
    made, answer = engine(defense), "There is a cup."
    own = job(
        tmp_path,
        made,
        3,
        count=2,
        answers={f"scene/{number}": answer for number in range(2)},
        effort=Effort(queries=64),
    )
    first = job(tmp_path, made, 3, count=2, answers=own.answers, effort=Effort(queries=0))
    for found, start, old in zip(suffixes(own), suffixes(first), own.samples, strict=True):
        assert found.request.text.startswith(f"{old.request.text} ") and found.request.images == old.request.images
        target = SuffixTarget(made, old.request, answer)
        losses = [
            target.losses([asked])
            for each in (found, start)
            if (asked := target.asked(each.request.text[len(old.request.text) + 1 :]))
        ]
        assert losses[0][0] < losses[1][0]


def test_request_that_the_guard_answers_itself_gets_no_suffix(tmp_path: Path) -> None:
    own = engines.model(says=("must_refuse", "illegal"))
    made = engines.engine(
        "safety-head",
        own=own,
        says=("must_refuse", "illegal"),
        policy=engines.Policy(own.config.taxonomy, {"must_refuse": "refuse"}),
    )
    given = job(tmp_path, made, 3, count=1, answers={"scene/0": "There is a cup."})
    assert [each.request for each in suffixes(given)] == [each.request for each in given.samples]
