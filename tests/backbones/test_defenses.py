"""Every family behind every kind of defense: what the engine promises hangs on neither."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safevlm import defenses
from safevlm.config import TensorKind
from safevlm.defenses import Defense, Policy, prompts, security_tensor
from safevlm.defenses.base import ImageFeatures
from safevlm.defenses.fusion import RULES, Fusion
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.oracle import OracleDetector
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.defenses.security_tensor import SecurityTensor
from safevlm.engine import Engine, setting_of
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Generation, Request, Verdict
from tests.backbones import families
from tests.backbones.test_contract import CPU, counted, guarded, requests
from tests.engine import engines
from tests.engine.test_animations import animation

FEW = Generation(max_new_tokens=3)
SHAPES: dict[TensorKind, tuple[int, ...]] = {
    "textual": (2, families.WIDTH),
    "visual": (3, families.SIDE, families.SIDE),
}
"""Of security tensors."""
QUICK = "qwen3_vl"
"""Behind every defense among the fast tests; the other families, behind what is in `TELLING`, among the slow ones."""
NAMES = (
    "none",
    "safety-head",
    "static-prompt",
    "self-check",
    "oracle",
    "eta",
    "fusion:max",
    "fusion:mean",
    "security-tensor:textual",
    "safety-head+static-prompt",
    "static-prompt+oracle+self-check",
    "oracle+security-tensor:textual",
)
TELLING = ("eta", "fusion:max", "safety-head+static-prompt", "static-prompt+oracle+self-check", NAMES[-1])
"""Every kind of defense, most of them in a stack: what one alone does to a family, it does there too."""
WHOLE = ("gemma3", "paligemma")
"""Families whose processor leaves an image whole, as it is."""
ASKS_AGAIN = ("self-check", "eta")
SEEN = (("careful", "privacy"), (SAFE, CLEAN), (SAFE, CLEAN), ("must_refuse", "illegal"), ("may_refuse", "insults"))
"""What the oracle says of `requests()`, one after the other."""
REFUSES = Policy(DEFAULT, {"careful": "hint", "may_refuse": "allow", "must_refuse": "refuse"})

OTHERS = tuple(family for family in families.ANSWERING if family != QUICK)
each_family = families.each()
every_defense = pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=() if family == QUICK else [pytest.mark.slow, *families.few_marks(family)])
        for family, name in [
            *((family, name) for family in families.ANSWERING for name in (NAMES if family == QUICK else TELLING)),
            *((family, "security-tensor:visual") for family in WHOLE),
        ]
    ],
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of stock models, a textual tensor that fits all of them, and a visual one."""
    home, draw = tmp_path_factory.mktemp("families"), torch.Generator().manual_seed(0)
    for kind, shape in SHAPES.items():
        values = torch.randn(shape, generator=draw)
        security_tensor.write(home / security_tensor.file_name(kind), SecurityTensor(kind, values, "after_image"))
    return home


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    engines.cut_asks(monkeypatch, 3)


def asked() -> list[Request]:
    return [dataclasses.replace(request, id=str(index)) for index, request in enumerate(requests())]


@functools.cache
def bare(home: Path, family: str) -> Engine:
    """A family's model with a safety head of opinions far apart, behind nothing; tests share it."""
    made = guarded(home, family, "none")
    with torch.no_grad():
        for read_out in (made.model.safety_head.level, made.model.safety_head.category):
            read_out.weight.mul_(1e3)
    return made


def engine(home: Path, family: str, name: str, policy: Policy = REFUSES) -> Engine:
    truths = {request.id: Verdict(*seen, source="oracle") for request, seen in zip(asked(), SEEN, strict=True)}
    return Engine(bare(home, family).loaded, _defense(home, bare(home, family), name, policy, truths), CPU)


def _defense(home: Path, own: Engine, name: str, policy: Policy, truths: dict[str, Verdict]) -> Defense:
    if name.startswith("fusion"):
        told = {key: _with_probabilities(verdict) for key, verdict in truths.items()}
        members = [SafetyHeadDetector(), OracleDetector(told)]
        return Mixer(Fusion(name.removeprefix("fusion:"), members, policy), policy)
    for kind in SHAPES:
        file = home / security_tensor.file_name(kind)
        name = name.replace(f"tensor:{kind}", f"tensor:{kind}={file}")
    return defenses.build(name, setting_of(own.loaded, policy, truths, CPU))


def _with_probabilities(verdict: Verdict) -> Verdict:
    levels = {level: float(level == verdict.level) for level in DEFAULT.level_names}
    categories = {category: float(category == verdict.category) for category in DEFAULT.category_names}
    return dataclasses.replace(verdict, level_probabilities=levels, category_probabilities=categories)


def first_logits(behind: Engine, requests: Sequence[Request]) -> dict[int, Tensor]:
    """Of the first token of each answer that the model is asked for, by the request's index."""
    encoded = behind.encoded(requests)
    if encoded is None:
        return {}
    with torch.no_grad():
        return dict(zip(encoded.requests, behind.model(**encoded.model_inputs).logits[:, -1], strict=True))


@every_defense
def test_a_batch_says_what_each_request_says_alone_and_the_tower_runs_once(home: Path, family: str, name: str) -> None:
    assert set(RULES) == {each.removeprefix("fusion:") for each in NAMES if each.startswith("fusion")}
    behind = engine(home, family, name)
    with counted(behind.model.tower) as looks:
        together = behind.reply_all(asked(), FEW, batch_size=8, errors="raise")
    if not any(each in name for each in ASKS_AGAIN):
        assert len(looks) == 1
    logits = first_logits(behind, asked())
    assert len(logits) == sum(not reply.refused_by for reply in together)
    assert not any(torch.allclose(one, two, atol=1e-2) for one, two in itertools.combinations(logits.values(), 2))
    for index, (request, one) in enumerate(zip(asked(), together, strict=True)):
        alone = behind.reply(request, FEW)
        for own in first_logits(behind, [request]).values():
            torch.testing.assert_close(own, logits[index], rtol=1e-4, atol=1e-4)
        assert engines.same_verdict(one.verdict, alone.verdict) and not one.verdict.error
        assert (one.text, one.prompt, one.refused_by, one.trace) == (
            alone.text,
            alone.prompt,
            alone.refused_by,
            alone.trace,
        )


@each_family
def test_the_policy_hints_refuses_and_lets_through(home: Path, family: str) -> None:
    """The hint is one line of the prompt and of nothing else; who is refused does not reach the LLM."""
    behind = engine(home, family, "oracle")
    with engines.watched(behind) as plain:
        expected = bare(home, family).reply_all(asked(), FEW, errors="raise")
    with engines.watched(behind) as put:
        replies = behind.reply_all(asked(), FEW, errors="raise")
    hint, topic = prompts.hint(DEFAULT, *SEEN[0]), prompts.refusal(DEFAULT, SEEN[3][1])
    decode = behind.processor.tokenizer.decode
    for index, (one, reply) in enumerate(zip(expected, replies, strict=True)):
        assert reply.prompt.count(hint) == (index == 0) and hint not in reply.text
        if index == 3:
            assert reply.refused_by == "oracle" and reply.text == topic and not reply.prompt
        else:
            assert not reply.refused_by and reply.prompt.replace(f"\n{hint}", "") == one.prompt
            assert reply.text == one.text or index == 0
    told = [decode(row) for row in put.rows]
    assert [text.replace(f"\n{hint}", "") for text in told] == [decode(plain.rows[index]) for index in (0, 1, 2, 4)]
    assert [text.count(hint) for text in told] == [1, 0, 0, 0]

    with counted(behind.model.lm_layers[0]) as steps, counted(behind.model.tower) as looks:
        behind.reply(asked()[3], FEW)
    assert not steps and len(looks) <= 1, "the oracle needs no look, and a refusal no answer"


@pytest.mark.parametrize(
    ("family", "name", "raises"),
    [
        *itertools.product([QUICK], ["safety-head", "static-prompt+safety-head", "fusion:mean"], [True, False]),
        *(pytest.param(family, "static-prompt+safety-head", False, marks=families.marks(family)) for family in OTHERS),
    ],
)
def test_a_detector_that_breaks_refuses_and_the_llm_is_not_asked(
    home: Path, family: str, name: str, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind, request = engine(home, family, name), asked()[0]
    if raises:
        monkeypatch.setattr(behind.model, "judge", _raise)
    else:
        bias = behind.model.safety_head.level.bias
        monkeypatch.setattr(bias, "data", torch.full_like(bias, math.nan))
    with counted(behind.model.lm_layers[0]) as steps:
        reply = behind.reply(request, FEW)
    assert reply.refused_by == behind.defense.name and reply.text == prompts.REFUSAL_ON_ERROR
    assert reply.verdict.error and not steps


def _raise(*_: Any) -> Any:
    raise RuntimeError("the lamp went out")


class _Knows:
    """A detector that sees one image, by what the model makes of it."""

    name = "knows"

    def __init__(self, patches: Tensor) -> None:
        self.patches = patches

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        found: Sequence[Tensor] = features.vision.patches
        known = [own.shape == self.patches.shape and torch.allclose(own, self.patches, atol=1e-4) for own in found]
        return Verdict(*(("must_refuse", "illegal") if any(known) else (SAFE, CLEAN)), source=self.name)


@each_family
def test_every_frame_of_an_animation_is_looked_at_and_the_first_is_read(home: Path, family: str) -> None:
    own = bare(home, family)
    frames = [families.image(seed, 40, 24) for seed in (1, 2, 3)]
    bad = own._encoder.features([Request("", images=(frames[2],))])[0].vision
    assert bad is not None
    behind = Engine(own.loaded, Mixer(_Knows(bad.patches[0]), REFUSES), CPU)
    moving, other = Request("What is it?", images=(animation(frames),)), Request("And this?", images=(frames[1],))
    one, two = behind.reply_all([moving, other], FEW, errors="raise")
    assert one.refused_by and one.verdict.frame.startswith("frame 3 of 3") and not two.refused_by
    still = own.reply(dataclasses.replace(moving, images=(frames[0],)), FEW)
    assert own.reply(moving, FEW).text == still.text
