"""Adversarial training of the head: what the attack may do, what the loss is, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from llava_patch import vision
from safevlm.config import AdversarialSettings, Recipe, SafetyConfig
from safevlm.data.pixels import read_images
from safevlm.model import losses
from safevlm.model.checkpoint_folder import FINAL, SAFETY_FILE
from safevlm.model.safety_modules import is_safety_name
from safevlm.taxonomy import DEFAULT
from safevlm.training import adversarial, feature_cache
from safevlm.training import recipe as recipes
from safevlm.training.adversarial import AdversarialTrainer, pixel_scale
from safevlm.training.pixel_attack import PixelAscent, PixelScale
from safevlm.training.provenance import recipe_yaml
from safevlm.training.run import train
from safevlm.training.stages import SECURITY_TENSOR
from tests import tiny
from tests.training import workshop
from tests.training.launching import fork

ROOT = Path(__file__).parents[2]
SAFETY = SafetyConfig(**{**tiny.SAFETY, "lm_tokens": 0})
READS_TEXT = dataclasses.replace(SAFETY, reads_text=True)
AUGMENT = ["rotate:20", "collage", "noise"]
TRADES = AdversarialSettings(epsilon=8, steps=2, weight=2.0, ramp=0.5)
MADRY = AdversarialSettings(epsilon=8, steps=1, objective="madry", weight=0.25, ramp=0.0)
HIDING = dataclasses.replace(MADRY, goal="clean")
WEIGHTS = {"lm": 0.0, "level": 3.0, "category": 5.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a stock LLaVA; `data/mixed.jsonl`: 16 records, some without a verdict or an image."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data", 16))
    return home


def _recipe(home: Path, out: Path, settings: AdversarialSettings = TRADES, **sections: Any) -> Recipe:
    """Two epochs of two updates each; checkpoint-1 lies inside the first epoch."""
    given = {
        "loss": WEIGHTS,
        "model": {"safety": SAFETY},
        "data": {"augment": AUGMENT, "augment_share": 0.75},
        "optim": {"epochs": 2},
        "run": {"save_steps": 1},
    }
    made = workshop.recipe(home / "base", home / "data" / "mixed.jsonl", out, **{**given, **sections})
    return dataclasses.replace(made, adversarial=settings)


class Watched(AdversarialTrainer):
    """Keeps what it was fed and attacked, and the weights that it started from."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.before = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
        self.pairs: list[tuple[Tensor, Tensor, float]] = []
        self.attacked_ids: set[str] = set()

    def _changed(self, model: Any, inputs: dict[str, Any]) -> Any:
        changed = super()._changed(model, inputs)
        self.pairs.append((inputs["pixel_values"], changed, self._epsilon()))
        self.attacked_ids |= set(inputs["ids"])
        return changed


def _watched(home: Path, out: Path, **sections: Any) -> Watched:
    made: list[Watched] = []
    settings = sections.pop("settings", TRADES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(adversarial, "AdversarialTrainer", lambda **given: made.append(Watched(**given)) or made[-1])
        train(_recipe(home, out, settings, **sections))
    return made[0]


@pytest.fixture(scope="module")
def whole(home: Path) -> Watched:
    """A run that nothing interrupted, in `home/whole`. Read only."""
    return _watched(home, home / "whole")


# The attack


def test_changed_images_are_pixels_and_lie_within_epsilon(whole: Watched) -> None:
    epsilons = []
    for clean, changed, epsilon in whole.pairs:
        before, after = _pixels(whole, clean), _pixels(whole, changed)
        assert after.min() >= -1e-3 and after.max() <= 255 + 1e-3, "no 8-bit image has such a pixel"
        distance = (after - before).abs().max()
        assert distance <= epsilon + 1e-3 and distance > 0.9 * epsilon, "in every channel the bound is the same"
        epsilons.append(epsilon)
    assert sorted(set(epsilons)) == [4.0, 8.0] and epsilons == sorted(epsilons), "it grows, and then stays"


def _pixels(trainer: Watched, images: Tensor) -> Tensor:
    """On the scale of 0 to 255."""
    processor = trainer.loaded.processor.image_processor
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (processor.image_mean, processor.image_std))
    return (images * std + mean) * 255


def test_black_and_white_are_where_the_processor_puts_them() -> None:
    processor = workshop.processor()
    scale = pixel_scale(processor)
    for colour, bound in (("black", scale.lowest), ("white", scale.highest)):
        read = read_images(processor, [[Image.new("RGB", (64, 64), colour)]])
        assert torch.allclose(read, bound.expand_as(read), atol=1e-5)
    assert torch.allclose(scale.change(255), scale.highest - scale.lowest)


def test_more_steps_find_no_smaller_loss() -> None:
    images = torch.rand(3, 3, 4, 4)
    scale = PixelScale(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = lambda pixels: (pixels * weight).sum().tanh()  # noqa: E731
    start = torch.zeros_like(images)
    found = [loss(PixelAscent(8, steps, 8 / max(1, steps))(images, start, scale, loss)) for steps in (0, 1, 4)]
    assert found[0] <= found[1] <= found[2] and found[0] < found[2]
    corner = torch.minimum(torch.maximum(images + weight.sign() * 8 / 255, torch.zeros(())), torch.ones(()))
    assert torch.allclose(PixelAscent(8, 4, 8)(images, start, scale, loss), corner, atol=1e-6), "of a plane it is known"


# The loss


def test_trades_is_its_formula() -> None:
    """CE(f(x), y) + weight · KL(f(x) ‖ f(x')), by hand."""
    clean, changed = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    by_hand = 0.0
    for one, other in zip(clean.softmax(-1).tolist(), changed.softmax(-1).tolist(), strict=True):
        by_hand += sum(p * math.log(p / q) for p, q in zip(one, other, strict=True))
    term = losses.divergence(changed, clean)
    assert (term.total.item(), int(term.count)) == (pytest.approx(by_hand, rel=1e-5), 2)


@pytest.mark.parametrize("settings", [TRADES, MADRY, HIDING], ids=["trades", "madry", "hiding"])
def test_logged_terms_add_up_to_the_objective(home: Path, tmp_path: Path, settings: AdversarialSettings) -> None:
    final = train(_recipe(home, tmp_path / "out", settings, optim={"epochs": 1}))
    share = settings.weight if settings.objective == "madry" else 0.0
    for line in workshop.history(final):
        total = 0.0
        for name in ("level", "category"):
            clean, changed = line[f"loss_{name}"], line[f"loss_{name}_changed"]
            total += WEIGHTS[name] * ((1 - share) * clean + settings.weight * changed)
        assert line["loss"] == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_terms_are_those_of_the_images_that_the_attack_made(whole: Watched, home: Path) -> None:
    """The trainer's own terms on one batch, against two passes of the model."""
    batch = whole._prepare_inputs(whole.data_collator([whole.train_dataset[index] for index in range(4)]))
    terms, _ = whole._terms(whole.model, batch)
    clean, changed, _ = whole.pairs.pop()
    kept = batch["safe_level"] != -100
    assert 0 < int(kept.sum()) < 4
    ids = batch["input_ids"][kept]
    outputs = [whole.model(ids, pixel_values=each, skip_lm=True) for each in (clean, changed)]
    for name, key in (("level", "safe_level"), ("category", "safe_type")):
        one, other = (getattr(each, f"{name}_logits") for each in outputs)
        wanted = torch.nn.functional.cross_entropy(one, batch[key][kept], reduction="sum")
        assert terms[name].total.item() == pytest.approx(wanted.item(), rel=1e-4)
        divergence = torch.nn.functional.kl_div(other.log_softmax(-1), one.softmax(-1), reduction="sum")
        assert terms[f"{name}_changed"].total.item() == pytest.approx(divergence.item(), rel=1e-3, abs=1e-6)
        assert int(terms[name].count) == int(terms[f"{name}_changed"].count) == int(kept.sum())


@pytest.mark.slow
def test_the_objective_does_not_hang_on_how_an_update_is_cut(home: Path, tmp_path: Path) -> None:
    runs = []
    for size in (8, 2):
        optim = {"epochs": 1, "batch_size": size, "accumulation": 8 // size}
        runs.append(workshop.history(train(_recipe(home, tmp_path / str(size), optim=optim))))
    for whole_step, cut in zip(*runs, strict=True):
        assert [cut[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [whole_step[key] for key in ("loss", "grad_norm")], rel=2e-3
        )


def test_only_labelled_images_are_attacked_and_with_the_goal_clean_only_risky_ones(
    whole: Watched, home: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (home / "data" / "mixed.jsonl").read_text().splitlines()]
    labelled = {row["id"] for row in rows if "image" in row and "safe_type" in row}
    risky = {row["id"] for row in rows if "image" in row and row.get("safe_type", 6) != DEFAULT.category_id("clean")}
    hiding = _watched(home, tmp_path / "out", settings=HIDING, optim={"epochs": 1})
    assert whole.attacked_ids == labelled and hiding.attacked_ids == risky and risky < labelled


def test_the_goal_clean_lowers_the_lead_of_the_easier_read_out(home: Path, tmp_path: Path) -> None:
    settings = AdversarialSettings(epsilon=16, steps=8, goal="clean", ramp=0.0)
    trainer = _watched(home, tmp_path / "out", settings=settings, optim={"max_steps": 1, "lr": 1e-9})
    scale = pixel_scale(trainer.loaded.processor)
    assert scale.lowest.shape == (3, 1, 1)
    for clean, changed, _ in trainer.pairs:
        ids = torch.full((len(clean), trainer.loaded.safe_llava.slots), workshop.processor().image_token_id)
        before, after = (_leads(trainer, ids, images) for images in (clean, changed))
        assert (after < before).all()


def _leads(trainer: Watched, ids: Tensor, images: Tensor) -> Tensor:
    """(b,) of the read-out that is nearer to clean, by hand."""
    outputs = trainer.model(ids, pixel_values=images, skip_lm=True)
    level, category = outputs.level_logits, outputs.category_logits
    clean = DEFAULT.category_id("clean")
    risks = torch.cat([category[:, :clean], category[:, clean + 1 :]], 1)
    return torch.minimum(level[:, 1:].amax(1) - level[:, 0], risks.amax(1) - category[:, clean])


# What changes, and what comes out of a run


def test_the_head_and_its_projector_learn_and_nothing_else_moves(whole: Watched) -> None:
    moved = {name for name, each in whole.model.state_dict().items() if not torch.equal(each, whole.before[name])}
    assert moved and all(map(is_safety_name, moved))
    assert not any(
        weight.grad is not None for name, weight in whole.model.named_parameters() if not is_safety_name(name)
    )


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_resumed_equals_uninterrupted(whole: Watched, home: Path, tmp_path: Path, stopped_at: int) -> None:
    name = f"checkpoint-{stopped_at}"
    shutil.copytree(home / "whole" / name, tmp_path / "again" / name)
    again = train(_recipe(home, tmp_path / "again"))
    first, second = (load_file(folder / FINAL / SAFETY_FILE) for folder in (home / "whole", again.parent))
    assert workshop.same_tensors(first, second), "images or attacks were others"
    assert workshop.history(home / "whole" / FINAL) == workshop.history(again)


@pytest.mark.slow
def test_processes_that_load_data_change_nothing(whole: Watched, home: Path, tmp_path: Path) -> None:
    data = {"augment": AUGMENT, "augment_share": 0.75, "workers": 2}
    again = train(_recipe(home, tmp_path / "out", data=data))
    assert workshop.history(home / "whole" / FINAL) == workshop.history(again)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(home: Path, tmp_path: Path) -> None:
    """One of them has a batch without an image: nobody waits in the attack."""
    one = train(_recipe(home, tmp_path / "one"))
    recipe = _recipe(home, tmp_path / "two", optim={"epochs": 2, "batch_size": 1, "accumulation": 4})
    two = fork("torchrun", recipe, tmp_path)
    for alone, together in zip(workshop.history(one), workshop.history(two), strict=True):
        assert [together[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [alone[key] for key in ("loss", "grad_norm")], rel=2e-3
        )


@pytest.mark.slow
def test_a_head_that_reads_text_is_attacked_too(home: Path, tmp_path: Path) -> None:
    trainer = _watched(home, tmp_path / "out", model={"safety": READS_TEXT})
    assert trainer.pairs and all(not torch.equal(clean, changed) for clean, changed, _ in trainer.pairs)


@pytest.mark.parametrize("section", ["augment", "adversarial"])
def test_nothing_is_kept_of_images_that_change(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    """By itself a run of two epochs would keep what the tower gave."""
    seen: list[int] = []
    encode = vision.encode_images
    monkeypatch.setattr(
        vision, "encode_images", lambda model, images: seen.append(len(images)) or encode(model, images)
    )
    settings = TRADES if section == "adversarial" else AdversarialSettings()
    data = {"augment": AUGMENT} if section == "augment" else {}
    train(_recipe(home, tmp_path / "out", settings, data=data))
    assert not (tmp_path / "out" / feature_cache.FOLDER).exists()
    assert sum(seen) >= 2 * 12, "12 of 16 records have an image, and there are two epochs"


# What is refused


@pytest.mark.parametrize(
    ("settings", "sections", "key"),
    [
        (TRADES, {"loss": {"lm": 1.0}, "data": {}}, r"adversarial\.epsilon.*loss\.lm"),
        (TRADES, {"data": {"feature_cache": "kept"}}, r"data\.feature_cache.*adversarial\.epsilon"),
        (AdversarialSettings(), {"data": {"feature_cache": "kept", "augment": AUGMENT}}, r"data\.feature_cache"),
        (TRADES, {"run": {"deepspeed": "zero2"}}, r"adversarial\.epsilon.*run\.deepspeed"),
    ],
)
def test_what_does_not_go_together_names_its_keys(
    tmp_path: Path, settings: AdversarialSettings, sections: dict[str, Any], key: str
) -> None:
    with pytest.raises(ValueError, match=key):
        _recipe(tmp_path, tmp_path / "out", settings, **sections)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": -1}, {"epsilon": 256}, {"steps": 0}, {"ramp": 2}, {"objective": "madry", "weight": 1.5}]
)
def test_settings_out_of_range_name_their_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"adversarial\.({'|'.join(wrong)})"):
        AdversarialSettings(**wrong)


def test_a_stage_of_its_own_training_does_not_pass_over_it(home: Path, tmp_path: Path) -> None:
    for settings, data in ((TRADES, {}), (AdversarialSettings(), {"augment": AUGMENT})):
        with pytest.raises(ValueError, match=r"(adversarial\.epsilon|data\.augment).*stage security_tensor"):
            SECURITY_TENSOR.check(_recipe(home, tmp_path / "out", settings, data=data))


def test_a_wrong_change_is_named_at_parsing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_yaml(_recipe(home, tmp_path / "out")), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        recipes.parse([str(file), "--data.augment", json.dumps(["twist"])])
    assert stopped.value.code == 2 and "data.augment: unknown 'twist'" in capsys.readouterr().err
