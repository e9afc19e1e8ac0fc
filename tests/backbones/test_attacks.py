"""Every family whose processor copies values can be attacked by its own gradient, through the engine that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from safevlm.data.images import open_image
from safevlm.evaluation.attacks.descent import Box, descend, pgd
from safevlm.evaluation.attacks.job import Effort
from safevlm.evaluation.attacks.white_box import WhiteBox, frozen, to_images
from safevlm.types import Request, Sample
from tests.backbones import families
from tests.backbones.test_contract import guarded
from tests.backbones.test_pixel_map import COPYING

ANSWER = "a b"


def samples(folder: Path, count: int) -> list[Sample]:
    for number in range(count):
        families.image(number, 40, 32).save(folder / f"{number}.png")
    paths = [folder / f"{number}.png" for number in range(count)]
    return [Sample(Request("What is it?", (path,), id=path.stem), "any", "any") for path in paths]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@families.each(COPYING)
def test_attack_sees_the_verdicts_and_prompts_of_the_engine_and_has_a_gradient(
    family: str, home: Path, tmp_path: Path
) -> None:
    made = frozen(guarded(home, family))
    with torch.no_grad():
        for read_out in (made.model.safety_head.level, made.model.safety_head.category):
            read_out.weight.mul_(1e3)
    box = WhiteBox(made, samples(tmp_path, 6), [ANSWER] * 6)
    native = [Request("What is it?", (image,)) for image in to_images(box.originals)]
    images = (box.originals.float() / 255).requires_grad_()
    losses = box.losses(images)
    assert losses.is_unseen.tolist() == [made.look(request).is_clean for request in native]
    gradient = torch.autograd.grad((losses.margins.sum(-1) + losses.answer).sum(), images)[0]
    assert (gradient.flatten(1).abs().amax(-1) > 0).all()

    bare = made.behind("none")
    asked = bare.encoded(native)
    assert asked is not None
    said = box.wanted[0].ids[-box.wanted[0].tokens :]
    ids = torch.cat([asked.input_ids, said.expand(6, -1)], 1)
    mask = torch.cat([asked.attention_mask, torch.ones(6, len(said), dtype=torch.long)], 1)
    logits = made.model(input_ids=ids, attention_mask=mask, **asked.lm_arguments(ids, asked.image_tokens)).logits
    logits = logits[:, -len(said) - 1 : -1]
    expected = F.cross_entropy(logits.transpose(1, 2), said.expand(6, -1), reduction="none").mean(-1)
    torch.testing.assert_close(losses.answer, expected, rtol=1e-3, atol=1e-3)


@families.each(COPYING)
def test_attacked_image_is_read_as_it_was_found(family: str, home: Path, tmp_path: Path) -> None:
    made = frozen(guarded(home, family))
    box = WhiteBox(made, samples(tmp_path, 2), ["", ""])
    best = descend(box, Box(box.originals.float(), 8), pgd, Effort(steps=3, starts=1), 0)
    for number, image in enumerate(to_images(best.images)):
        image.save(tmp_path / "sent.png")
        again = box.map.native(open_image(tmp_path / "sent.png"))
        torch.testing.assert_close(again.float(), best.images[number], rtol=0, atol=0)
    assert (best.images - box.originals).abs().max() <= 8
